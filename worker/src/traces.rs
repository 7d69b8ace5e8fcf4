//! What a run has to do with traces: to which it belongs, what its command or the address that it calls is told of that, and its span.

use common::domain::record::{Ending, Record, Status};
use common::domain::run::OpenRun;
use common::domain::trace::TraceContext;
use common::traces::{Kind, Span, Tracer};

/// The run's own span, if anybody is to have it.
fn own(tracer: &Tracer, open: &OpenRun) -> Option<TraceContext> {
    if !tracer.is_on() {
        return None; // without the run's hashes: every run comes by here
    }
    let of_run = TraceContext::of_run(&open.run_id, &open.job, open.plan_time);
    match open.trace {
        Some(asked) => Some(TraceContext { span: of_run.span, ..asked }).filter(|_| asked.sampled),
        None => Some(TraceContext { sampled: true, ..of_run }).filter(|own| tracer.samples(own.trace)),
    }
}

/// What the run hands on. Without a span of its own that is what it was asked with: whoever asked is then the parent of what the run leads to. A run
/// that nobody's trace has led to, on a worker that sends no traces, hands on nothing: told that its trace is not kept, a command would
/// not keep its own.
pub(crate) fn handed(tracer: &Tracer, open: &OpenRun) -> Option<TraceContext> {
    let unkept = || tracer.is_on().then(|| TraceContext::of_run(&open.run_id, &open.job, open.plan_time));
    own(tracer, open).or(open.trace).or_else(unkept)
}

/// The span of a run that begins, with all that is known already; `None` = its trace is not kept.
pub(crate) fn begin(tracer: &Tracer, open: &OpenRun) -> Option<Box<Span>> {
    let context = own(tracer, open)?;
    let mut attributes = vec![
        ("fleetcron.job", open.job.as_str().into()),
        ("fleetcron.run_id", open.run_id.as_str().into()),
        ("fleetcron.plan_time", open.plan_time.rfc3339().into()),
        ("fleetcron.trigger", open.trigger.as_str().into()),
        ("fleetcron.attempt", i64::from(open.attempt).into()),
        ("fleetcron.worker", open.worker.as_str().into()),
    ];
    if let Some(after) = &open.after {
        attributes.push(("fleetcron.after", after.as_str().into()));
    }
    Some(Box::new(Span {
        context,
        parent: open.trace.map(|asked| asked.span),
        name: "run".to_owned(),
        kind: if open.trace.is_some() { Kind::Consumer } else { Kind::Internal },
        start: open.schedule_time,
        end: open.schedule_time,
        attributes,
        events: Vec::new(),
        fault: None,
    }))
}

/// The same, once the run is over.
pub(crate) fn ended(mut span: Span, ending: &Ending) -> Span {
    span.events.push(("started", ending.start_time));
    span.end = ending.end_time;
    span.attributes.push(("fleetcron.status", ending.status.as_str().into()));
    if let Some(code) = ending.exit_code {
        span.attributes.push(("process.exit.code", i64::from(code).into()));
    }
    if let Some(status) = ending.http_status {
        span.attributes.push(("http.response.status_code", i64::from(status).into()));
    }
    span.fault = (ending.status != Status::Succeeded).then(|| ending.err.clone());
    span
}

/// Says in the record of a run which trace it has begun, so that each finds the other. Whose trace it has followed stands there already.
pub(crate) fn name(tracer: &Tracer, record: &mut Record) {
    let has_run = !matches!(record.status, Some(Status::Skipped | Status::Lost) | None);
    if record.trace_id.is_some() || !has_run || !tracer.is_on() {
        return;
    }
    let (Some(run_id), Ok(job)) = (&record.claim, common::domain::job::JobName::parse(&record.job_name))
    else {
        return;
    };
    let trace = TraceContext::of_run(run_id, &job, record.plan_time).trace;
    record.trace_id = tracer.samples(trace).then(|| trace.to_string());
}

/// What the lines of the log say that are about one run.
pub(crate) fn log_span(open: &OpenRun) -> tracing::Span {
    // At the level of errors, or a filter that lets only those through would drop the names with the span.
    tracing::error_span!(
        "run",
        job = %open.job,
        run_id = %open.run_id,
        trace_id = open.trace.map(|asked| tracing::field::display(asked.trace))
    )
}

#[cfg(test)]
mod tests {
    use common::config::{self, Invocation};
    use common::traces::Resource;

    use super::*;
    use crate::exec::process::tests as runs;

    /// Keeps this part of the traces; nobody takes them.
    fn keeping(ratio: &str) -> Tracer {
        let set = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter();
        let Ok(Invocation::Run(settings)) = config::parse("worker", set, std::iter::empty()) else {
            panic!("{ratio}");
        };
        let resource = Resource { service: "s".to_owned(), instance: "i".to_owned() };
        Tracer::new(&settings.traces, resource)
    }

    #[tokio::test]
    async fn a_run_hands_on_its_span_where_that_is_kept_and_else_what_it_was_asked_with() {
        let (off, all, none) = (Tracer::default(), keeping("1"), keeping("0"));
        let run = runs::open();
        let own = TraceContext::of_run(&run.run_id, &run.job, run.plan_time);
        let kept = |context: TraceContext| TraceContext { sampled: true, ..context };
        let asked = TraceContext::random();
        let below = |asked: TraceContext| TraceContext { span: own.span, ..asked };
        for (tracer, trace, handed_on, has_span, is_named) in [
            (&off, None, None, false, false),
            (&off, Some(kept(asked)), Some(kept(asked)), false, true),
            (&all, None, Some(kept(own)), true, true),
            (&none, None, Some(own), false, false),
            (&all, Some(asked), Some(asked), false, true),
            (&none, Some(kept(asked)), Some(below(kept(asked))), true, true),
        ] {
            let open = OpenRun { trace, ..run.clone() };
            assert_eq!(handed(tracer, &open), handed_on, "{tracer:?} {trace:?}");
            let span = begin(tracer, &open);
            assert_eq!(span.is_some(), has_span, "{tracer:?} {trace:?}");
            if let Some(span) = span {
                assert_eq!((Some(span.context), span.parent), (handed_on, trace.map(|asked| asked.span)));
            }
            let mut record = Record::left_behind(&open, open.plan_time);
            record.status = Some(Status::Succeeded);
            name(tracer, &mut record);
            let trace_id = handed_on.filter(|_| is_named).map(|context| context.trace.to_string());
            assert_eq!(record.trace_id, trace_id, "{tracer:?} {trace:?}");
        }
    }

    #[tokio::test]
    async fn a_run_that_was_lost_names_no_trace_of_its_own_since_nobody_has_its_span() {
        let mut record = Record::left_behind(&runs::open(), common::clock::Timestamp::ZERO);
        assert_eq!(record.status, Some(Status::Lost));
        name(&keeping("1"), &mut record);
        assert_eq!(record.trace_id, None);
    }
}
