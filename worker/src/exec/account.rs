//! Users of this machine, as `/etc/passwd` and `/etc/group` know them.

use std::io;
use std::path::Path;

use rustix::process::{Gid, Uid};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Whom a command can run as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Account {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// All groups, that of `gid` among them.
    pub(super) groups: Vec<Gid>,
    pub(super) home: String,
}

impl Account {
    /// The user of this name, if there is one.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(super) fn find(name: &str) -> io::Result<Option<Self>> {
        // Other parts of the line may be in any encoding.
        let text =
            |path: &Path| Ok::<_, io::Error>(String::from_utf8_lossy(&std::fs::read(path)?).into_owned());
        Ok(Self::parse(name, &text(Path::new(PASSWD))?, &text(Path::new(GROUP))?))
    }

    fn parse(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let line = |line: &str| -> Option<Self> {
            let fields: Vec<&str> = line.split(':').collect();
            let [user, _password, uid, gid, _comment, home, ..] = fields[..] else { return None };
            let (uid, gid) = (Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?));
            (user == name).then(|| Self { uid, gid, groups: vec![gid], home: home.to_owned() })
        };
        let mut account = passwd.lines().find_map(line)?;
        let member_of = |line: &str| -> Option<Gid> {
            let fields: Vec<&str> = line.split(':').collect();
            let [_group, _password, gid, members] = fields[..] else { return None };
            let is_member = members.split(',').any(|member| member.trim() == name);
            is_member.then_some(Gid::from_raw(id(gid)?))
        };
        account.groups.extend(group.lines().filter_map(member_of).filter(|gid| *gid != account.gid));
        Some(account)
    }
}

/// The highest number is nobody's: to the kernel it says "as it is".
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_groups() {
        let passwd = "root:x:0:0:root:/root-dir:/bin/bash\n# none\nbroken:x:1\nevil:x:4294967295:1\ndeploy:x:1001:1002:D,,,:/srv/deploy:/bin/sh\n";
        let group = "root:x:0:\nstaff:x:50:other,deploy\ndeploy:x:1002:deploy\ndeployers:x:60:deployed\nlast:x:70:deploy\n";
        let found = Account::parse("deploy", passwd, group).unwrap();
        let groups = [1002, 50, 70].map(Gid::from_raw).to_vec();
        let (uid, gid) = (Uid::from_raw(1001), Gid::from_raw(1002));
        assert_eq!(found, Account { uid, gid, groups, home: "/srv/deploy".to_owned() });
        for nobody in ["other", "broken", "evil", "", "deploy:x", "# none"] {
            assert_eq!(Account::parse(nobody, passwd, group), None, "{nobody}");
        }
        assert_eq!(Account::find("root").unwrap().unwrap().uid, Uid::ROOT);
    }
}
