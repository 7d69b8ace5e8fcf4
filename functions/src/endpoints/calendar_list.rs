//! `GET /calendar/list`: the calendars in the order of their names, in pages that never cut silently.

use common::domain::calendars::Calendar;
use common::keys;
use common::kv::{Key, Kv, Span};
use lambda_http::Request;
use serde_json::{Map, Value};

use super::calendars::name_of;
use super::list::limit;
use super::{Page, Pages};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["limit", "after"];

/// Serves `GET /calendar/list`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| list(kv, &call).await).await
}

async fn list(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let mut page = Page::new(limit(&query)?);
    for warning in query.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let span = Span::prefix(keys::CALENDARS);
    let span = match query.filled("after") {
        Some(after) => span.after(&Key::from(format!("{}{after}", keys::CALENDARS))),
        None => span,
    };
    let mut pages = Pages::new(kv, span);
    'pages: while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            let Some(name) = name_of(pair) else {
                page.warnings.push(format!("{} is left out, that is no name of a calendar", pair.key));
                continue;
            };
            match Calendar::decode(&pair.value) {
                Ok(calendar) => {
                    if !page.take(name.as_str(), &pair.key, served(name.as_str(), &calendar)) {
                        break 'pages;
                    }
                }
                Err(why) => page
                    .leave_out(name.as_str(), format!("{} is left out, it cannot be read: {why}", pair.key)),
            }
        }
    }
    Ok(page.into_reply())
}

/// A calendar as it is served: as it is sent to be saved, and how many days it has.
pub(super) fn served(name: &str, calendar: &Calendar) -> Value {
    let mut fields = Map::from_iter([("name".to_owned(), Value::from(name))]);
    fields.extend(calendar.to_value());
    fields.insert("days".to_owned(), calendar.days.count().into());
    fields.into()
}
