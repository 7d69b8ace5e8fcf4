//! The fleet's settings: what jobs that say nothing of their own take for their zone, dialect, rule for daylight saving and missed fires; and the
//! calendars that jobs name.

use serde_json::{Map, Value};

use super::calendars::{Calendars, JobCalendars};
use super::job::{Fault, Job};
use super::options::{Misfire, of_word, word_of};
use super::stored;
use crate::schedule::{Dialect, Dst, ScheduleSettings, Zone};

/// Format version that is written.
const VERSION: u64 = 1;

/// What the times of jobs depend on beside the jobs: the value of `/cron/settings`, where `None` = nobody chose: the default of
/// [`ScheduleSettings`] and of [`Misfire`]; and calendars, which have keys of their own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FleetSettings {
    /// How expressions are read.
    pub dialect: Option<Dialect>,
    /// The zone of their times.
    pub timezone: Option<Zone>,
    /// What becomes of missed fires.
    pub misfire: Option<Misfire>,
    /// The rule for daylight saving.
    pub dst: Option<Dst>,
    /// The calendars, as far as whoever has this needs them. Not part of the value: whoever writes one of them puts `/cron/settings` with it, so that
    /// one revision stands for all.
    pub calendars: Calendars,
}

/// One setting: its name in the JSON, how it is read, how it is written.
struct Field {
    name: &'static str,
    read: fn(&mut FleetSettings, &Value) -> Result<(), String>,
    write: fn(&FleetSettings) -> Option<Value>,
}

const FIELDS: [Field; 4] = [
    Field {
        name: "dialect",
        read: |settings, value| dialect(value).map(|dialect| settings.dialect = Some(dialect)),
        write: |settings| settings.dialect.map(|dialect| word_of(&Dialect::ALL, &dialect).into()),
    },
    Field {
        name: "timezone",
        read: |settings, value| timezone(value).map(|zone| settings.timezone = Some(zone)),
        write: |settings| settings.timezone.as_ref().map(|zone| zone.name().into()),
    },
    Field {
        name: "misfire",
        read: |settings, value| misfire(value).map(|misfire| settings.misfire = Some(misfire)),
        write: |settings| settings.misfire.map(|misfire| word_of(&Misfire::ALL, &misfire).into()),
    },
    Field {
        name: "dst",
        read: |settings, value| dst(value).map(|dst| settings.dst = Some(dst)),
        write: |settings| settings.dst.map(|dst| word_of(&Dst::ALL, &dst).into()),
    },
];

/// Reads `dialect`, of a job or of the fleet.
pub(super) fn dialect(value: &Value) -> Result<Dialect, String> {
    let wrong = "is none of \"standard\" and \"seed\": write one of them, or leave it out";
    of_word(&Dialect::ALL, value).ok_or_else(|| wrong.to_owned())
}

/// Reads `dst`.
pub(super) fn dst(value: &Value) -> Result<Dst, String> {
    let wrong = "is none of \"debian\", \"skip\" and \"twice\": write one of them, or leave it out";
    of_word(&Dst::ALL, value).ok_or_else(|| wrong.to_owned())
}

/// Reads `timezone`.
pub(super) fn timezone(value: &Value) -> Result<Zone, String> {
    let name =
        value.as_str().ok_or("is not a string: write a name such as \"Europe/Berlin\", or leave it out")?;
    Zone::parse(name)
}

/// Reads `misfire`.
pub(super) fn misfire(value: &Value) -> Result<Misfire, String> {
    let wrong = "is none of \"skip\", \"once\" and \"all\": write one of them, or leave it out";
    of_word(&Misfire::ALL, value).ok_or_else(|| wrong.to_owned())
}

impl FleetSettings {
    /// Checks settings that somebody wants to have.
    ///
    /// # Errors
    /// Every fault at once, each with its field.
    pub fn from_submitted(value: &Value) -> Result<Self, Vec<Fault>> {
        let Value::Object(fields) = value else {
            return Err(vec![Fault::new(
                "",
                "the settings are not a JSON object like {\"timezone\":\"Europe/Berlin\"}",
            )]);
        };
        let (mut settings, mut faults) = (Self::default(), Vec::new());
        for (name, value) in fields {
            let known = FIELDS.iter().find(|field| field.name == name);
            let read = match known {
                Some(_) if value.is_null() => Ok(()),
                Some(field) => (field.read)(&mut settings, value),
                None => {
                    let names: Vec<&str> = FIELDS.iter().map(|field| field.name).collect();
                    Err(format!("unknown field: the settings are {}", names.join(", ")))
                }
            };
            faults.extend(read.err().map(|why| Fault::new(name, why)));
        }
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }

    /// The settings that were chosen, as they are stored and served.
    #[must_use]
    pub fn to_value(&self) -> Map<String, Value> {
        FIELDS.iter().filter_map(|field| Some((field.name.to_owned(), (field.write)(self)?))).collect()
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Map::from_iter([("v".to_owned(), Value::from(VERSION))]);
        fields.extend(self.to_value());
        stored::encode(&fields)
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// See [`stored::decode`]; also when it has a setting, or a value of one, that this version does not know: whoever cannot follow the fleet's
    /// settings must not fire by others.
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        let mut fields: Map<String, Value> = stored::decode(bytes, VERSION)?;
        fields.remove("v");
        Self::from_submitted(&Value::Object(fields)).map_err(|faults| {
            let told: Vec<String> = faults.iter().map(Fault::to_string).collect();
            stored::Error::Malformed(told.join("; "))
        })
    }

    /// With what the expressions of a job are read.
    #[must_use]
    pub fn of_job<'a>(&self, job: &'a Job) -> ScheduleSettings<'a> {
        let own = &job.options;
        ScheduleSettings {
            name: Some(job.name.as_str()),
            ..self.under(own.timezone.as_ref(), own.dialect, own.dst, own.calendars.as_deref())
        }
    }

    /// With what an expression is read that comes with these settings of its own; without a name.
    #[must_use]
    pub fn under(
        &self,
        timezone: Option<&Zone>,
        dialect: Option<Dialect>,
        dst: Option<Dst>,
        calendars: Option<&JobCalendars>,
    ) -> ScheduleSettings<'static> {
        ScheduleSettings {
            zone: timezone.or(self.timezone.as_ref()).cloned().unwrap_or_default(),
            dialect: dialect.or(self.dialect),
            dst: dst.or(self.dst).unwrap_or_default(),
            name: None,
            days: calendars.map(|of_job| self.calendars.days(of_job)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_read_and_written_again() {
        for given in [
            json!({}),
            json!({"timezone": "Europe/Berlin"}),
            json!({"dialect": "seed", "timezone": "UTC", "misfire": "skip", "dst": "twice"}),
            json!({"dialect": "standard", "misfire": "all", "dst": "debian"}),
        ] {
            let settings = FleetSettings::from_submitted(&given).unwrap();
            assert_eq!(Value::Object(settings.to_value()), given);
            assert_eq!(FleetSettings::decode(&settings.encode()).unwrap(), settings);
        }
        let nothing = FleetSettings::from_submitted(&json!({"dialect": null, "timezone": null})).unwrap();
        assert_eq!(nothing, FleetSettings::default());
    }

    #[test]
    fn every_fault_is_told() {
        let faults = FleetSettings::from_submitted(
            &json!({"dialect": "quartz", "timezone": "berlin", "misfire": 1, "dst": "utc", "zone": "UTC"}),
        )
        .unwrap_err();
        let told: Vec<String> = faults.iter().map(Fault::to_string).collect();
        for (told, says) in told.iter().zip([
            "dialect: is none of \"standard\"",
            "timezone: is no time zone of the IANA: did you mean \"Europe/Berlin\"",
            "misfire: is none of",
            "dst: is none of \"debian\"",
            "zone: unknown field: the settings are dialect, timezone, misfire, dst",
        ]) {
            assert!(told.starts_with(says), "{told}");
        }
        assert_eq!(told.len(), 5);
        assert!(FleetSettings::from_submitted(&json!([])).is_err());
    }

    #[test]
    fn what_a_newer_version_wrote_is_not_guessed_at() {
        for newer in [
            &b"{\"v\":2}"[..],
            b"{\"v\":1,\"calendar\":\"x\"}",
            b"{\"v\":1,\"dialect\":\"quartz\"}",
            b"1",
            b"{}",
        ] {
            assert!(FleetSettings::decode(newer).is_err(), "{}", String::from_utf8_lossy(newer));
        }
    }
}
