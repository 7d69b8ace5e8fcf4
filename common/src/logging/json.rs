//! Log lines as JSON, one object a line, as CloudWatch and its kind read them: what the line's spans say (the request's id) stands in it
//! like a field of its own, so that all lines of a request are found by one condition.

use std::fmt;
use std::io::Write as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::clock::{Clock as _, SystemClock};
use crate::shortened::shortened;

/// Most of a text that a field shows: CloudWatch takes 256 KiB a line, and what is longer is no news but a payload.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Writes each event as a line of JSON.
pub(super) struct JsonLines<W> {
    writer: W,
}

impl<W> JsonLines<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer }
    }
}

/// The fields of a span, kept with it.
struct Fields(Map<String, Value>);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Map::new();
        attributes.record(&mut Visitor(&mut fields));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Fields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(&mut Visitor(&mut fields.0));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Map::new();
        event.record(&mut Visitor(&mut said));
        let metadata = event.metadata();
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), SystemClock.now().rfc3339().into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("message".to_owned(), said.shift_remove("message").unwrap_or_default());
        line.insert("target".to_owned(), metadata.target().into());
        let own = line.len();
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.0.iter().for_each(|(name, value)| add(&mut line, own, name, value.clone()));
            }
        }
        said.into_iter().for_each(|(name, value)| add(&mut line, own, &name, value));
        let mut bytes = Value::Object(line).to_string().into_bytes();
        bytes.push(b'\n');
        // One write, so that lines of several threads do not mix; a log that cannot be written has nobody left to be told.
        let _lost = self.writer.make_writer().write_all(&bytes);
    }
}

/// Adds a field; an inner span's, or the event's, replaces an outer one's, and none replaces the `own` first fields that every line has.
fn add(line: &mut Map<String, Value>, own: usize, name: &str, value: Value) {
    let taken = line.keys().take(own).any(|reserved| reserved == name);
    let name = if taken { format!("{name}_") } else { name.to_owned() };
    line.insert(name, value);
}

struct Visitor<'a>(&'a mut Map<String, Value>);

impl Visitor<'_> {
    fn text(&mut self, field: &Field, text: String) {
        self.0.insert(field.name().to_owned(), shortened(text, TEXT_BYTES_MAX).into());
    }
}

impl Visit for Visitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(in crate::logging) fn lines(log: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let writer = written.clone();
        let lines = JsonLines::new(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_an_object_with_the_fields_of_its_spans() {
        let logged = lines(|| {
            let outer = tracing::error_span!("outer", request_id = "r1", n = 1, late = tracing::field::Empty);
            let _outer = outer.enter();
            outer.record("late", 2.5);
            let _inner = tracing::error_span!("inner", n = 2).entered();
            let text = "a \"quote\"\nand a line";
            tracing::warn!(text, ok = true, error = %io::Error::other("broken"), level = "mine", "hello {}", 1);
        });
        let [line] = logged.as_slice() else { panic!("{logged:?}") };
        let keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(&keys[..5], ["timestamp", "level", "message", "target", "request_id"], "{line}");
        assert_eq!((&line["level"], &line["level_"]), (&"WARN".into(), &"mine".into()));
        assert_eq!((&line["message"], &line["text"]), (&"hello 1".into(), &"a \"quote\"\nand a line".into()));
        assert_eq!((&line["n"], &line["late"], &line["ok"]), (&2.into(), &2.5.into(), &true.into()));
        assert_eq!(line["error"], "broken");
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.len() == 24 && timestamp.ends_with('Z'), "{timestamp}");
    }

    #[test]
    fn a_long_text_is_cut() {
        let logged = lines(|| tracing::info!(text = "ö".repeat(TEXT_BYTES_MAX)));
        let text = logged[0]["text"].as_str().unwrap();
        assert!(text.len() <= TEXT_BYTES_MAX + 3 && text.ends_with("ö…"));
    }
}
