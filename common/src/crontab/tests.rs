//! Crontabs as text, and the jobs that they are.

use serde_json::{Value, json};

use super::*;
use crate::domain::job::Job;

fn reading(format: Format) -> Reading<'static> {
    static FLEET: std::sync::LazyLock<FleetSettings> = std::sync::LazyLock::new(FleetSettings::default);
    Reading { format, prefix: "", source: "test", timezone: None, fleet: &FLEET }
}

fn user(text: &str) -> Crontab {
    read(text.as_bytes(), &reading(Format::User))
}

/// The only job of a file, without its name and its label.
#[track_caller]
fn job_of(format: Format, text: &str) -> Value {
    let crontab = read(text.as_bytes(), &reading(format));
    assert_eq!(crontab.refused, [], "{text}");
    let [entry] = crontab.entries.as_slice() else { panic!("{text}: {:?}", crontab.entries) };
    let mut job = entry.submitted.job.to_value();
    let fields = job.as_object_mut().unwrap();
    fields.shift_remove("name");
    assert_eq!(fields.shift_remove("labels"), Some(json!({"importedFrom": "test"})), "{text}");
    job
}

#[test]
fn lines_are_read_as_cron_reads_them() {
    let rows: [(Format, &str, Value); 13] = [
        (Format::User, "*/5 * * * * true", json!({"command": "true", "cronExpr": "*/5 * * * *"})),
        (
            Format::User,
            " \t09,39 *   *\t* *   a  b \t ",
            json!({"command": "a  b", "cronExpr": "09,39 * * * *"}),
        ),
        (Format::User, "@daily\tx", json!({"command": "x", "cronExpr": "@daily"})),
        (Format::User, "0 0 * JAN-Mar sun a\r\n", json!({"command": "a", "cronExpr": "0 0 * JAN-Mar sun"})),
        (
            Format::System,
            "17 * * * * root cd / && x",
            json!({"command": "cd / && x", "cronExpr": "17 * * * *", "user": "root"}),
        ),
        (
            Format::System,
            "-*/15 * * * *   root  x",
            json!({"command": "x", "cronExpr": "*/15 * * * *", "user": "root"}),
        ),
        (
            Format::User,
            "0 0 * * * a \\%d \\\\ \\x",
            json!({"command": "a %d \\\\ \\x", "cronExpr": "0 0 * * *"}),
        ),
        (Format::User, "0 0 * * * ends in \\ ", json!({"command": "ends in \\ ", "cronExpr": "0 0 * * *"})),
        (
            Format::User,
            "0 0 * * * mail -s 'x y' me%Dear,%%100\\% so%",
            json!({"command": "exec <<'END'\nDear,\n\n100% so\nEND\nmail -s 'x y' me", "cronExpr": "0 0 * * *"}),
        ),
        (
            Format::User,
            "SHELL=/bin/zsh\n0 0 * * * echo 'a'%END%b",
            json!({"command": "exec <<'END_'\nEND\nb\nEND_\nexec /bin/zsh -c 'echo '\\''a'\\'''", "cronExpr": "0 0 * * *"}),
        ),
        (
            Format::User,
            "MAILTO=\"\"\nPATH = /bin:/usr/bin \n\"Q\"=\" a \"\n  X='' \nHOME=/srv\nRANDOM_DELAY=5\n0 0 * * * a",
            json!({"command": "a", "cronExpr": "0 0 * * *", "jitterSeconds": 300, "workingDir": "/srv",
                   "env": {"HOME": "/srv", "PATH": "/bin:/usr/bin", "Q": " a ", "X": ""}}),
        ),
        (
            Format::User,
            "# of the file\n\n#  Rotates\n#logs.  \n0 0 * * * a",
            json!({"command": "a", "cronExpr": "0 0 * * *", "description": "Rotates\nlogs."}),
        ),
        (
            Format::User,
            "# m h  dom mon dow   command\n0 0 * * * a",
            json!({"command": "a", "cronExpr": "0 0 * * *"}),
        ),
    ];
    let in_zones = "CRON_TZ=Asia/Tokyo\n0 0 * * * a\nCRON_TZ=\n0 0 * * * b";
    let zones: Vec<_> =
        user(in_zones).entries.iter().map(|entry| entry.submitted.schedule.zone().to_string()).collect();
    assert_eq!(zones, ["Asia/Tokyo", "UTC"]);
    for (format, text, expected) in rows {
        assert_eq!(job_of(format, text), expected, "{text}");
    }
}

/// What is refused: the line, the character, and what is said.
#[test]
fn what_cannot_be_taken_is_told_with_its_place() {
    for (format, text, line, character, says) in [
        (Format::User, "\n@reboot x", 2, 1, "no single boot"),
        (Format::User, "0 0 * *", 1, 1, "no command"),
        (Format::User, "0 0 * * *", 1, 1, "no command"),
        (Format::User, "@daily", 1, 1, "no command"),
        (Format::User, "0\t 61 * * * x", 1, 4, "hour: \"61\""),
        (Format::User, "  0 24 * * * x", 1, 5, "hour: \"24\""),
        (Format::User, "0 0 30 2 * x", 1, 5, "never comes"),
        (Format::User, "@dayly x", 1, 1, "not known"),
        (Format::User, "FOO BAR=1\n0 0 * * * true", 1, 1, "no command"),
        (Format::User, "1A=b", 1, 1, "no digit first"),
        (Format::User, "BASH_ENV=/x", 1, 1, "BASH_ENV"),
        (Format::User, "SHELL=zsh", 1, 1, "absolute path"),
        (Format::User, "RANDOM_DELAY=61", 1, 1, "0 to 60"),
        (Format::User, "CRON_TZ=Berlin", 1, 1, "did you mean \"Europe/Berlin\""),
        (Format::User, "0 0 * * * %x", 1, 11, "no command before"),
        (Format::System, "0 0 * * * root", 1, 11, "no command behind the user"),
        (Format::System, "0 0 * * * * root x", 1, 11, "\"*\" is no name of a user"),
        (Format::System, "@daily", 1, 1, "user and command"),
        (Format::User, "#fleetcron: {\"name\":\"a\"}", 1, 1, "no line with a command follows"),
        (Format::User, "#fleetcron: 5", 1, 1, "JSON object"),
        (Format::User, "#fleetcron: {\"name\":\"a\",\"cronExpr\":\"x\",\"command\":\"x\"}", 1, 1, "cronExpr"),
    ] {
        let crontab = read(text.as_bytes(), &reading(format));
        let told: Vec<_> = crontab.refused.iter().map(|r| (r.line, r.character)).collect();
        assert_eq!(told, [(line, character)], "{text}: {:?}", crontab.refused);
        assert!(crontab.refused[0].why.contains(says), "{text}: {}", crontab.refused[0].why);
    }
    let crontab = read(b"# caf\xe9\n0 0 * * * caf\xe9 x\n0 0 * * * ok", &reading(Format::User));
    assert_eq!(crontab.entries.len(), 1);
    assert_eq!((crontab.refused[0].line, crontab.refused[0].character), (2, 14));
}

#[test]
fn what_means_less_here_is_said() {
    for (format, text, says) in [
        (Format::User, "MAILTO=ops@example.org", "no mail"),
        (Format::User, "TZ=Asia/Tokyo", "CRON_TZ"),
        (Format::User, "LOGNAME=x", "sets it from the user"),
        (Format::System, "0 0 * * * root x\n0 1 * * * root y", "CRON_USERS"),
        (Format::User, "0 0 * * * root x", "format=system"),
        (Format::User, "0 0 * * * * x", "five fields"),
        (Format::User, "0 0 * * * a \\", "continued"),
        (Format::User, "-0 0 * * * a", "cron's log"),
        (Format::User, "0 0 * * * a\r\n", "CR LF"),
    ] {
        let remarks = read(text.as_bytes(), &reading(format)).remarks;
        assert_eq!(remarks.len(), 1, "{text}: {remarks:?}");
        assert!(remarks[0].what.contains(says), "{text}: {remarks:?}");
    }
}

#[test]
fn names_are_the_same_in_any_order_and_know_a_line_whose_times_are_edited() {
    let names = |text: &str| -> Vec<(String, String)> {
        let jobs = user(text).entries.into_iter().map(|entry| entry.submitted.job);
        let mut names: Vec<_> = jobs.map(|job| (job.name.to_string(), job.cron_expr)).collect();
        names.sort();
        names
    };
    let lines =
        ["0 8 * * * /usr/bin/report --all", "0 20 * * * /usr/bin/report --all", "5 5 * * * x", "5 5 * * * x"];
    let all = names(&lines.join("\n"));
    let mut turned = lines;
    turned.reverse();
    assert_eq!(names(&turned.join("\n")), all);
    let only: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    // Other names here would make every imported job anew.
    assert_eq!(only, ["report-30fd52a2", "report-30fd52a2-2", "x-00fb4e8d", "x-00fb4e8d-2"]);
    assert_eq!(names("1 1 * * * /usr/bin/report --all")[0].0, only[0]);
    for (command, begins) in [
        (
            "test -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }",
            "anacron-run-parts-cron.daily-",
        ),
        (
            "[ -x /usr/lib/php/sessionclean ] && if [ ! -d /run/systemd/system ]; then /usr/lib/php/sessionclean; fi",
            "sessionclean-system-",
        ),
        ("command -v debian-sa1 > /dev/null && debian-sa1 1 1", "debian-sa1-"),
        ("PATH=/x:$PATH \"$HOME/bin/backup.sh\" >> /var/log/x 2>&1", "x-"),
        ("[ 1 ]", "job-"),
    ] {
        let name = &names(&format!("0 0 * * * {command}"))[0].0;
        assert!(name.starts_with(begins), "{command}: {name}");
    }
}

#[test]
fn what_a_command_reads_reaches_it_to_the_letter() {
    for (command, input) in [
        ("cat", "a\n"),
        ("cat", "\n"),
        ("cat", "$HOME `id` \\ 'END' \"\nEND\nEND_\n\n"),
        ("read a; echo \"$a\"; cat # rest", "%1\n\u{597d}\n"),
        ("cat; true &", "x\n"),
    ] {
        let whole = command::with_input(command, input);
        assert_eq!(command::parted(&whole), (command, input));
        assert_eq!(
            command::split(&command::written(&whole)),
            (command.to_owned(), input.to_owned()),
            "{whole}"
        );
        for shell in ["bash", "sh"] {
            let ran = std::process::Command::new(shell).args(["-c", &whole]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&ran.stdout), input, "{shell}: {whole}");
            assert!(ran.status.success() && ran.stderr.is_empty(), "{shell}: {whole}");
        }
    }
    assert_eq!(command::parted("exec <<'END'\nx"), ("exec <<'END'\nx", ""));
    assert_eq!(
        command::split("a\\\\%b"),
        ("a\\\\".to_owned(), "b\n".to_owned()),
        "backslashes count in pairs"
    );
}

#[test]
fn what_cron_would_do_otherwise_is_written_as_a_comment_with_the_reason() {
    let job = |more: Value| {
        let mut job = json!({"name": "a", "command": "x", "cronExpr": "0 0 * * *"});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Job::from_submitted(job, &FleetSettings::default()).unwrap().job
    };
    for (more, says) in [
        (json!({"enabled": false}), Some("nothing for enabled")),
        (json!({"misfire": "all", "fence": true}), Some("misfire, fence")),
        (json!({"cronExpr": "0 0 0 * * * *"}), Some("five fields")),
        (json!({"cronExpr": "5/20 * * * *"}), Some("\"5/20\"")),
        (json!({"user": "root"}), Some("format=system")),
        (json!({"command": "a\nb"}), Some("no way of writing")),
        (json!({"command": "a \\%"}), Some("no way of writing")),
        (json!({"env": {"SHELL": "/bin/zsh"}}), Some("no way of writing")),
        (json!({"cronExpr": "@daily"}), None),
        (json!({"cronExpr": "*/5 1,2-3 1-31/2 JAN mon-fri", "command": "date +%F"}), None),
        (json!({"description": "# odd\n\n", "labels": {"a": "b"}}), None),
    ] {
        let text = write(&[job(more.clone())], Format::User);
        assert_eq!(text.contains("is no line here"), says.is_some(), "{more}: {text}");
        assert!(text.contains(says.unwrap_or("#fleetcron: {")), "{more}: {text}");
    }
}

/// A small generator of random numbers (xorshift64*), so that a seed gives the same rows on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11).unwrap() % bound
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn text(&mut self, pieces: &[&str], most: usize) -> String {
        let many = 1 + self.below(most);
        (0..many).map(|_| self.one_of(pieces)).collect()
    }

    fn job(&mut self, n: usize) -> Job {
        const PIECES: [&str; 20] = [
            "a", " ", "%", "\\", "\\%", "'", "\"", "$X", "\u{597d}", "#", "*", "=", "\n", "END", "|", "&&",
            "/x", "<", "%%", "0",
        ];
        const TIMES: [&str; 12] = [
            "* * * * *",
            "*/5 * * * *",
            "0 0 * * 7",
            "@daily",
            "0 0 1 JAN *",
            "0 0 0 * * * *",
            "5/20 * * * *",
            "0 8-18/2 * * mon-fri",
            "0,30 9 13 * 5",
            "0 0 1 1 * 2090",
            "@hourly",
            "59 23 31 12 *",
        ];
        const VALUES: [&str; 10] =
            ["", "/bin:/usr/bin", " x ", "\"", "'a'", "a=b", "$HOME", "#", "a\nb", "\u{597d}"];
        let mut fields = json!({"name": format!("job {n}"), "cronExpr": self.one_of(&TIMES)});
        let mut command = self.text(&PIECES, 8);
        if self.below(4) == 0 {
            command = command::with_input(&command, &format!("{}\n", self.text(&PIECES, 6)));
        }
        fields["command"] = if command.trim().is_empty() { "x".into() } else { command.into() };
        for option in
            ["env", "description", "labels", "user", "enabled", "workingDir", "misfire", "jitterSeconds"]
        {
            if self.below(6) > 0 {
                continue;
            }
            fields[option] = match option {
                "env" => {
                    let names = ["PATH", "HOME", "A", "TZ", "SHELL", "MAILTO"];
                    let many = self.below(3);
                    Value::from_iter((0..many).map(|_| (self.one_of(&names), self.one_of(&VALUES))))
                }
                "description" => self.text(&PIECES, 6).into(),
                "labels" => self.one_of(&[json!({}), json!({"importedFrom": "x"}), json!({"a": "\"b\""})]),
                "user" => self.one_of(&["root", "deploy"]).into(),
                "enabled" => (self.below(2) == 0).into(),
                "workingDir" => self.one_of(&["/", "/srv x"]).into(),
                "timezone" => self.one_of(&["Asia/Tokyo", "UTC"]).into(),
                "misfire" => "all".into(),
                _ => 60.into(),
            };
        }
        Job::from_submitted(fields.clone(), &FleetSettings::default())
            .unwrap_or_else(|faults| panic!("{fields}: {faults:?}"))
            .job
    }
}

#[test]
fn what_is_written_is_read_as_the_same_jobs() {
    let mut random = Random(0x5eed_c407);
    let mut lines = 0;
    for round in 0..300 {
        let mut jobs: Vec<Job> = (0..random.below(12)).map(|n| random.job(n)).collect();
        for format in [Format::User, Format::System] {
            let text = write(&jobs, format);
            let crontab = read(text.as_bytes(), &reading(format));
            assert_eq!(crontab.refused, [], "round {round}: {text}");
            let mut read: Vec<Job> = crontab.entries.into_iter().map(|entry| entry.submitted.job).collect();
            let by_name = |a: &Job, b: &Job| a.name.cmp(&b.name);
            read.sort_by(by_name);
            jobs.sort_by(by_name);
            assert_eq!(read, jobs, "round {round}: {text}");
            lines += text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        }
    }
    assert!(lines > 300, "only {lines} lines were more than comments");
}

#[test]
fn no_text_makes_it_panic() {
    let mut random = Random(0x5eed_c408);
    let pieces = [
        "* ",
        "0 ",
        "*/5 ",
        "@daily ",
        "\n",
        "\r\n",
        "#",
        "#fleetcron: ",
        "{}",
        "A",
        "=",
        "\"",
        "'",
        "%",
        "\\",
        "\t",
        " ",
        "-",
        "root ",
        "\u{597d}",
        "SHELL=/x\n",
    ];
    for _ in 0..20_000 {
        let text = random.text(&pieces, 30);
        for format in [Format::User, Format::System] {
            let crontab = read(text.as_bytes(), &reading(format));
            for refused in &crontab.refused {
                assert!(refused.line >= 1 && refused.character >= 1 && !refused.why.is_empty(), "{text:?}");
            }
        }
    }
}
