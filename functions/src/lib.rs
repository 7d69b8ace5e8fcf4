//! The HTTP API: the table of routes, the handlers, and what serves one of them as a Lambda function.

pub mod access;
mod answer_headers;
mod audit;
pub mod caller;
pub mod endpoints;
pub mod http;
mod icalendar;
mod idempotency;
pub mod invocation;
mod other_site;
pub mod ports;
mod store;
mod traces;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::api::errno::Kind;
use common::clock::{Clock, SystemClock};
use common::config;
use common::domain::access::Role;
use common::kv::Kv;
use common::run_log::RunLog;
use common::traces::{Resource, Tracer};
use lambda_http::Request;

use crate::access::{Gate, Right};
use crate::endpoints::{
    audit_list, calendar_delete, calendar_list, calendar_save, console, delete, export, fleet_pause,
    fleet_resume, fleet_settings, fleet_status, get, import, kill, list, log, next, output, pause, resume,
    rollback, run, running, save, token_create, token_list, token_revoke, token_self, versions, workers,
};
use crate::http::{Response, refuse};
use crate::invocation::Invocation;
use crate::ports::Opening;

/// Everything that the handlers use, for whoever serves all of them in one process.
#[derive(Clone)]
pub struct Ports {
    /// Where the jobs are.
    pub kv: Arc<dyn Kv>,
    /// Where the records are.
    pub run_log: Arc<dyn RunLog>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// A response on its way.
pub type Handling = Pin<Box<dyn Future<Output = Response> + Send>>;

/// One path, and who answers there.
pub struct Route {
    /// The path; `{file}` stands for one segment.
    pub path: &'static str,
    /// The methods that it takes; the handler itself answers 405 to all others.
    pub methods: &'static [&'static str],
    /// The Lambda function, which is also the name of its program.
    pub function: &'static str,
    /// What its callers must be. All routes of one function ask for the same: under Lambda it is the function that is called.
    pub right: Right,
    handler: fn(Ports, Request) -> Handling,
}

/// Every route. The programs in `src/bin` and the router table in `Cargo.toml` say the same, which `tests/tests/routes.rs` holds.
pub static ROUTES: [Route; 31] = [
    Route {
        path: "/job/save",
        methods: save::METHODS,
        function: "save",
        right: Right::Scoped(Role::Editor),
        handler: |ports, request| {
            Box::pin(async move { save::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/delete",
        methods: delete::METHODS,
        function: "delete",
        right: Right::Scoped(Role::Editor),
        handler: |ports, request| {
            Box::pin(async move { delete::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/list",
        methods: list::METHODS,
        function: "list",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { list::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/job/next",
        methods: next::METHODS,
        function: "next",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| {
            Box::pin(async move { next::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/import",
        methods: import::METHODS,
        function: "import",
        right: Right::Scoped(Role::Editor),
        handler: |ports, request| {
            Box::pin(async move { import::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/export",
        methods: export::METHODS,
        function: "export",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { export::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/job/kill",
        methods: kill::METHODS,
        function: "kill",
        right: Right::Scoped(Role::Operator),
        handler: |ports, request| {
            Box::pin(async move { kill::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/pause",
        methods: pause::METHODS,
        function: "pause",
        right: Right::Scoped(Role::Operator),
        handler: |ports, request| {
            Box::pin(async move { pause::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/resume",
        methods: resume::METHODS,
        function: "resume",
        right: Right::Scoped(Role::Operator),
        handler: |ports, request| {
            Box::pin(async move { resume::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/run",
        methods: run::METHODS,
        function: "run",
        right: Right::Scoped(Role::Operator),
        handler: |ports, request| {
            Box::pin(async move { run::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/job/versions",
        methods: versions::METHODS,
        function: "versions",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| {
            Box::pin(async move { versions::handle(&*ports.kv, &*ports.run_log, request).await })
        },
    },
    Route {
        path: "/job/rollback",
        methods: rollback::METHODS,
        function: "rollback",
        right: Right::Scoped(Role::Editor),
        handler: |ports, request| {
            Box::pin(
                async move { rollback::handle(&*ports.kv, &*ports.run_log, &*ports.clock, request).await },
            )
        },
    },
    Route {
        path: "/job/log",
        methods: log::METHODS,
        function: "log",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { log::handle(&*ports.run_log, request).await }),
    },
    Route {
        path: "/job/running",
        methods: running::METHODS,
        function: "running",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { running::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/run/get",
        methods: get::METHODS,
        function: "get",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| {
            Box::pin(async move { get::handle(&*ports.kv, &*ports.run_log, request).await })
        },
    },
    Route {
        path: "/run/output",
        methods: output::METHODS,
        function: "output",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| {
            Box::pin(async move { output::handle(&*ports.kv, &*ports.run_log, request).await })
        },
    },
    Route {
        path: "/fleet/pause",
        methods: fleet_pause::METHODS,
        function: "fleet_pause",
        right: Right::Whole(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { fleet_pause::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/fleet/resume",
        methods: fleet_resume::METHODS,
        function: "fleet_resume",
        right: Right::Whole(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { fleet_resume::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/fleet/status",
        methods: fleet_status::METHODS,
        function: "fleet_status",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { fleet_status::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/fleet/settings",
        methods: fleet_settings::METHODS,
        function: "fleet_settings",
        right: Right::Mixed { read: Role::Viewer, write: Role::Admin },
        handler: |ports, request| {
            Box::pin(async move { fleet_settings::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/audit/list",
        methods: audit_list::METHODS,
        function: "audit_list",
        right: Right::Whole(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { audit_list::handle(&*ports.kv, &*ports.run_log, request).await })
        },
    },
    Route {
        path: "/calendar/list",
        methods: calendar_list::METHODS,
        function: "calendar_list",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { calendar_list::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/calendar/save",
        methods: calendar_save::METHODS,
        function: "calendar_save",
        right: Right::Whole(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { calendar_save::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/calendar/delete",
        methods: calendar_delete::METHODS,
        function: "calendar_delete",
        right: Right::Whole(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { calendar_delete::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/worker/list",
        methods: workers::METHODS,
        function: "workers",
        right: Right::Scoped(Role::Viewer),
        handler: |ports, request| Box::pin(async move { workers::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/token/create",
        methods: token_create::METHODS,
        function: "token_create",
        right: Right::Scoped(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { token_create::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/token/list",
        methods: token_list::METHODS,
        function: "token_list",
        right: Right::Scoped(Role::Admin),
        handler: |ports, request| Box::pin(async move { token_list::handle(&*ports.kv, request).await }),
    },
    Route {
        path: "/token/revoke",
        methods: token_revoke::METHODS,
        function: "token_revoke",
        right: Right::Scoped(Role::Admin),
        handler: |ports, request| {
            Box::pin(async move { token_revoke::handle(&*ports.kv, &*ports.clock, request).await })
        },
    },
    Route {
        path: "/token/self",
        methods: token_self::METHODS,
        function: "token_self",
        right: Right::Scoped(Role::Viewer),
        handler: |_, request| Box::pin(token_self::handle(request)),
    },
    Route {
        path: "/",
        methods: console::METHODS,
        function: "console",
        right: Right::Public,
        handler: |_, request| Box::pin(std::future::ready(console::handle(request))),
    },
    Route {
        path: "/console/{file}",
        methods: console::METHODS,
        function: "console",
        right: Right::Public,
        handler: |_, request| Box::pin(std::future::ready(console::handle(request))),
    },
];

/// Serves a request to any route, once the gate has let its caller in; 404 in the envelope when there is no route for its path: which there
/// are is no secret.
pub async fn handle_through(gate: &Gate, ports: &Ports, request: Request) -> Response {
    match route(&request) {
        Some(route) => gate.through(route, request, |request| (route.handler)(ports.clone(), request)).await,
        None => no_route(&request),
    }
}

/// As [`handle_through`], of a request whose caller stands beside it already ([`access::principal`]); without one it is nobody's, and refused.
pub async fn handle(ports: &Ports, request: Request) -> Response {
    let Some(route) = route(&request) else { return no_route(&request) };
    match access::check(route, &request) {
        Ok(()) => (route.handler)(ports.clone(), request).await,
        Err(refusal) => refuse(refusal.kind, refusal.message),
    }
}

fn no_route(request: &Request) -> Response {
    let path = invocation::path(request);
    let paths: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
    refuse(Kind::NotFound, format!("there is nothing at {path}: the paths are {}", paths.join(", ")))
}

/// The route that a request is for; `None` when there is none for its path.
#[must_use]
pub fn route(request: &Request) -> Option<&'static Route> {
    let path = invocation::path(request);
    ROUTES.iter().find(|route| matches(route.path, path))
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('{') {
        None => pattern == path,
        Some((before, _)) => {
            path.strip_prefix(before).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'))
        }
    }
}

/// Runs one endpoint as a Lambda function, behind the gate: `build` makes its handler from the settings, without I/O, and the handler keeps its
/// connections across invocations. Returns when Lambda ends the process, or with every reason why the settings are no good.
pub fn serve<H, F>(function: &'static str, build: impl FnOnce(&Opening) -> Result<H, String>) -> ExitCode
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    common::logging::init();
    let settings = match config::settings_or_exit(function) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    // Built inside the runtime: the clients of the stores start their tasks there.
    let served = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let opening = Opening::new(*settings);
            // Which route it is was decided by the gateway, which calls this function for no other; the path only tells which of its routes, and
            // all of these ask for the same right.
            let route = ROUTES.iter().find(|route| route.function == function);
            let route = route.ok_or("no route leads to this function")?;
            let gate = match route.right {
                Right::Public => Gate::published(),
                _ => Gate::of_function(&opening, ports::kv(&opening)?, Arc::new(SystemClock))?,
            };
            let resource =
                Resource { service: format!("fleetcron-{function}"), instance: common::ids::random_id() };
            let tracer = Tracer::new(&opening.traces, resource);
            let serving = Arc::new((gate, build(&opening)?, tracer));
            let cold = Arc::new(AtomicBool::new(true));
            let service = lambda_http::service_fn(move |mut request: Request| {
                let (serving, cold) = (Arc::clone(&serving), cold.swap(false, Ordering::Relaxed));
                async move {
                    let (gate, handler, tracer) = &*serving;
                    let invocation = Invocation::of_lambda(&request, function, cold);
                    let invocation = invocation.traced_by(tracer, &request, true);
                    invocation.name(&mut request);
                    Ok::<_, std::convert::Infallible>(
                        invocation.observe(gate.through(route, request, handler)).await,
                    )
                }
            });
            // One request at a time, unless Lambda says that it sends several at once (AWS_LAMBDA_MAX_CONCURRENCY, on managed
            // instances).
            lambda_http::run_concurrent(service).await.map_err(|e| e.to_string())
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(function, %error, "the function cannot serve");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    // A request waits for its store nearly all the time: one thread serves them, however many Lambda gives a process.
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())
}
