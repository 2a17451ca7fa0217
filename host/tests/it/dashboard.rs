//! Tests the dashboard: its responses, its access rules, and the end of its event streams.

use background_tasks::{Guard, Registry, Restart, SmolSpawner, TaskId};
use background_tasks_host::{Dashboard, DashboardBody, Host};
use base64::prelude::{BASE64_STANDARD, Engine};
use futures_lite::future::{block_on, pending, poll_fn, zip};
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

fn inspected() -> Registry<SmolSpawner> {
    Registry::builder(SmolSpawner).inspect().build()
}

fn dashboard() -> Dashboard {
    Dashboard::new(&inspected())
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let request = Request::builder().method(method).uri(uri);
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

const HERE: (&str, &str) = ("host", "localhost:8080");
const SAME_ORIGIN: (&str, &str) = ("sec-fetch-site", "same-origin");

fn send(dashboard: &Dashboard, method: &str, uri: &str) -> Response<DashboardBody> {
    dashboard.respond(&request(method, uri, &[HERE]))
}

fn post(dashboard: &Dashboard, uri: &str) -> StatusCode {
    dashboard.respond(&request("POST", uri, &[HERE, SAME_ORIGIN])).status()
}

fn header<'a>(response: &'a Response<DashboardBody>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn poll(body: &mut DashboardBody, waker: &Waker) -> Poll<Option<String>> {
    let frame = Pin::new(body).poll_frame(&mut Context::from_waker(waker));
    frame.map(|frame| frame.map(|frame| String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap()))
}

fn next(body: &mut DashboardBody) -> Option<String> {
    block_on(poll_fn(|cx| poll(body, cx.waker())))
}

/// Waits for the next event of the stream, and returns its data.
fn event(body: &mut DashboardBody) -> Value {
    let event = next(body).expect("an event");
    let lines: Vec<_> = event.split('\n').collect();
    let &[data, "", ""] = &lines[..] else { panic!("{event:?}") };
    serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap()
}

fn text(response: Response<DashboardBody>) -> String {
    let mut body = response.into_body();
    let length = body.size_hint().exact().unwrap();
    let text = next(&mut body).unwrap_or_default();
    assert_eq!(text.len() as u64, length);
    assert!(body.is_end_stream());
    assert_eq!(next(&mut body), None);
    text
}

#[test]
fn page_is_served_at_any_path() {
    for path in ["/", "/background", "/background/", "/a/b/background", "/events/"] {
        let response = send(&dashboard(), "GET", path);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "content-type"), "text/html; charset=utf-8");
        assert_eq!(header(&response, "cache-control"), "no-store");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff");
        assert_eq!(header(&response, "referrer-policy"), "no-referrer");
        let length: usize = header(&response, "content-length").parse().unwrap();
        let html = text(response);
        assert_eq!(html.len(), length);
        assert!(html.starts_with("<!doctype html>"));
        assert_eq!(
            html.matches("//www.w3.org/2000/svg").count(),
            html.matches("://").count(),
            "the page loads nothing from other servers"
        );
    }
}

#[test]
fn head_response_has_only_headers() {
    let (get, head) = (send(&dashboard(), "GET", "/"), send(&dashboard(), "HEAD", "/"));
    assert_eq!(get.headers(), head.headers());
    assert_eq!(text(head), "");
}

#[test]
fn content_security_policy_allows_only_the_pages_own_script_and_style() {
    let response = send(&dashboard(), "GET", "/");
    let policy = header(&response, "content-security-policy").to_owned();
    let directives: Vec<_> = policy.split("; ").collect();
    for directive in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]
    {
        assert!(directives.contains(&directive), "{directive} is not in {policy}");
    }
    // A browser normalizes the line ends of a page before it computes the hashes.
    let html = text(response).replace("\r\n", "\n");
    for element in ["script", "style"] {
        let (_, rest) = html.split_once(&format!("<{element}>")).unwrap();
        let (inside, _) = rest.split_once(&format!("</{element}>")).unwrap();
        let hash = BASE64_STANDARD.encode(Sha256::digest(inside));
        let directive = format!("{element}-src 'sha256-{hash}'");
        assert!(directives.contains(&&*directive), "{directive} is not in {policy}");
    }
}

#[test]
fn unsupported_method_is_answered_with_the_allowed_ones() {
    for (method, path, allowed) in [
        ("POST", "/background", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("HEAD", "/background/events", "GET"),
        ("POST", "/events", "GET"),
        ("GET", "/background/abort?id=1-1", "POST"),
        ("HEAD", "/abort", "POST"),
    ] {
        let response = send(&dashboard(), method, path);
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(header(&response, "allow"), allowed, "{method} {path}");
    }
}

/// Returns the statuses of requests for the three resources: the page, the events, and an abort.
fn statuses(dashboard: &Dashboard, headers: &[(&str, &str)]) -> [StatusCode; 3] {
    let headers = [headers, &[SAME_ORIGIN]].concat();
    [("GET", "/"), ("GET", "/events"), ("POST", "/abort?id=1-1")]
        .map(|(method, path)| dashboard.respond(&request(method, path, &headers)).status())
}

const SERVED: [StatusCode; 3] = [StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND];
const FORBIDDEN: [StatusCode; 3] = [StatusCode::FORBIDDEN; 3];

#[test]
fn localhost_and_ip_addresses_are_served() {
    for host in [
        "localhost",
        "LocalHost:80",
        "127.0.0.1:8080",
        "192.168.1.7",
        "0.0.0.0:1",
        "[::1]",
        "[::1]:8080",
        "[2001:db8::7]:443",
        "[::ffff:127.0.0.1]",
    ] {
        assert_eq!(statuses(&dashboard(), &[("host", host)]), SERVED, "{host}");
    }
}

#[test]
fn other_host_names_are_forbidden() {
    for host in [
        "",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "localhost.",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost:8080@evil.example",
        "evil.example@localhost",
        "localhost@localhost",
        "[::1].evil.example",
        "[::1]evil.example",
        "[::1]@evil.example",
        "[::1]:80.evil.example",
        "localhost:evil.example",
        "[127.0.0.1]",
        "[localhost]",
        "[::1",
        "::1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "127.0.0.1,evil.example",
        "localhost evil.example",
        "localhost/evil.example",
    ] {
        assert_eq!(statuses(&dashboard(), &[("host", host)]), FORBIDDEN, "{host}");
    }
    assert_eq!(statuses(&dashboard(), &[]), FORBIDDEN);
    assert_eq!(statuses(&dashboard(), &[("host", "localhost"), ("host", "evil.example")]), FORBIDDEN);
    assert_eq!(statuses(&dashboard(), &[("host", "evil.example"), ("host", "localhost")]), FORBIDDEN);
}

#[test]
fn http2_authority_is_checked() {
    let at = |uri: &str, headers: &[_]| dashboard().respond(&request("GET", uri, headers)).status();
    assert_eq!(at("https://localhost:8080/", &[]), StatusCode::OK);
    assert_eq!(at("https://localhost:8080/", &[HERE]), StatusCode::OK);
    assert_eq!(at("https://evil.example/", &[]), StatusCode::FORBIDDEN);
    assert_eq!(at("https://evil.example/", &[HERE]), StatusCode::FORBIDDEN);
    assert_eq!(at("https://localhost@evil.example/", &[]), StatusCode::FORBIDDEN);
    assert_eq!(at("https://localhost:8080/", &[("host", "evil.example")]), StatusCode::FORBIDDEN);
    let abort =
        |origin| dashboard().respond(&request("POST", "https://localhost:8080/abort?id=1-1", &[("origin", origin)])).status();
    assert_eq!(abort("https://localhost:8080"), StatusCode::NOT_FOUND);
    assert_eq!(abort("https://localhost:8081"), StatusCode::FORBIDDEN);
}

#[test]
fn allowed_host_name_is_served() {
    let dashboard = dashboard().allow_host("Tasks.example").allow_host("other.example");
    for host in ["tasks.example", "TASKS.EXAMPLE:8443", "other.example:80", "localhost"] {
        assert_eq!(statuses(&dashboard, &[("host", host)]), SERVED, "{host}");
    }
    for host in ["example", "a.tasks.example", "tasks.example.evil", "tasks.example@evil.example", "tasks.example:1@evil.example"] {
        assert_eq!(statuses(&dashboard, &[("host", host)]), FORBIDDEN, "{host}");
    }
}

/// Returns a registry with a task that can be aborted, and the ID of the task.
fn with_straggler() -> (Registry<SmolSpawner>, TaskId) {
    let registry = inspected();
    registry.named("straggler").run(pending::<()>());
    let id = registry.tasks()[0].id().unwrap();
    (registry, id)
}

#[test]
fn same_origin_request_aborts_a_task() {
    let origin = ("origin", "http://localhost:8080");
    for headers in
        [&[HERE, SAME_ORIGIN][..], &[HERE, origin], &[HERE, origin, SAME_ORIGIN], &[HERE, ("origin", "https://localhost:8080")]]
    {
        let (registry, id) = with_straggler();
        let response = Dashboard::new(&registry).respond(&request("POST", &format!("/background/abort?id={id}"), headers));
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{headers:?}");
        assert_eq!(text(response), "");
        assert_eq!(block_on(registry.shutdown()).aborted, 1);
    }
}

#[test]
fn cross_origin_requests_are_forbidden() {
    let origin = |origin: &'static str| ("origin", origin);
    let site = |site: &'static str| ("sec-fetch-site", site);
    let attacks: &[&[(&str, &str)]] = &[
        &[],
        &[site("cross-site")],
        &[site("same-site")],
        &[site("none")],
        &[site("")],
        &[site("same-origin, cross-site")],
        &[site("cross-site"), origin("http://localhost:8080")],
        &[site("cross-site"), SAME_ORIGIN],
        &[SAME_ORIGIN, site("cross-site")],
        &[origin("null")],
        &[origin("")],
        &[origin("localhost:8080")],
        &[origin("http://localhost")],
        &[origin("http://localhost:8081")],
        &[origin("http://evil.example")],
        &[origin("http://localhost:8080.evil.example")],
        &[origin("http://localhost:8080@evil.example")],
        &[origin("http://evil.example@localhost:8080")],
        &[origin("http://evil.example/localhost:8080")],
        &[origin("http://127.0.0.1:8080")],
        &[origin("file://localhost:8080")],
        &[origin("http://localhost:8080"), origin("http://evil.example")],
        &[origin("http://evil.example"), origin("http://localhost:8080")],
        &[("referer", "http://localhost:8080/background")],
    ];
    let (registry, id) = with_straggler();
    let dashboard = Dashboard::new(&registry);
    for attack in attacks {
        let headers = [&[HERE], *attack].concat();
        let response = dashboard.respond(&request("POST", &format!("/abort?id={id}"), &headers));
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{attack:?}");
        assert!(!registry.tasks()[0].abort_requested(), "{attack:?}");
    }
    assert_eq!(post(&dashboard, &format!("/abort?id={id}")), StatusCode::NO_CONTENT);
    block_on(registry.shutdown());
}

#[test]
fn abort_request_is_answered() {
    let (registry, id) = with_straggler();
    let dashboard = Dashboard::new(&registry);
    let guard = registry.named("guard").guard().unwrap();
    let guarded = registry.tasks().into_iter().find(|task| task.name() == Some("guard")).unwrap().id().unwrap();
    for invalid in
        ["/abort", "/abort?", "/abort?id", "/abort?id=", "/abort?id=1", "/abort?id=+1-1", "/abort?ID=1-1", "/abort?id=1-1%20"]
    {
        assert_eq!(post(&dashboard, invalid), StatusCode::BAD_REQUEST, "{invalid}");
    }
    assert_eq!(post(&dashboard, "/abort?id=4000000000-1"), StatusCode::NOT_FOUND);
    assert_eq!(post(&dashboard, &format!("/abort?id={guarded}")), StatusCode::CONFLICT);
    assert_eq!(post(&dashboard, &format!("/a/b/abort?why=not&id={id}&id={guarded}")), StatusCode::NO_CONTENT);
    drop(guard);
    block_on(registry.wait_idle());
    assert_eq!(post(&dashboard, &format!("/abort?id={id}")), StatusCode::NOT_FOUND);
    assert_eq!(registry.summary().aborted, 1);
}

fn watch(dashboard: &Dashboard) -> DashboardBody {
    send(dashboard, "GET", "/background/events").into_body()
}

#[test]
fn first_event_is_immediate_and_others_follow() {
    let registry = inspected();
    let response = send(&Dashboard::new(&registry), "GET", "/events");
    assert_eq!(header(&response, "content-type"), "text/event-stream");
    assert_eq!(header(&response, "cache-control"), "no-store");
    assert_eq!(header(&response, "x-accel-buffering"), "no");
    assert_eq!(response.headers().get(header::CONTENT_LENGTH), None);
    let mut body = response.into_body();
    assert_eq!(body.size_hint().exact(), None);
    let Poll::Ready(Some(first)) = poll(&mut body, Waker::noop()) else { panic!("no event is ready") };
    let html = text(send(&Dashboard::new(&registry), "GET", "/"));
    let (_, rest) = html.split_once(" data-page=\"").unwrap();
    let (page, _) = rest.split_once('"').unwrap();
    assert!(first.starts_with(&format!("data: {{\"page\":\"{page}\",\"in_flight\":0,")), "{page}: {first}");
    assert_ne!(page, "00000000");
    assert!(is_pending(&mut body, Waker::noop()));
    let _guard = registry.named("a\n\ndata: \"</script>").guard().unwrap();
    let other = registry.guard().unwrap();
    let second = event(&mut body);
    assert_eq!(second["in_flight"], 2);
    assert_eq!(second["names"], serde_json::json!({ "": 1, "a\n\ndata: \"</script>": 1 }));
    assert_eq!(second["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(second["tasks"][0]["kind"], "guard");
    for flag in ["shutting_down", "drained", "last"] {
        assert_eq!(second[flag], false);
    }
    drop(other);
    assert_eq!(event(&mut body)["summary"]["completed"], 1);
    assert!(!body.is_end_stream());
}

#[test]
fn oldest_two_hundred_tasks_are_listed() {
    let registry = inspected();
    let first = registry.named("first").guard().unwrap();
    let others: Vec<Guard> = (0..210).map(|_| registry.named("other").guard().unwrap()).collect();
    let state = event(&mut watch(&Dashboard::new(&registry)));
    assert_eq!(state["in_flight"], 211);
    assert_eq!(state["names"], serde_json::json!({ "first": 1, "other": 210 }));
    let ages: Vec<f64> = state["tasks"].as_array().unwrap().iter().map(|task| task["age_seconds"].as_f64().unwrap()).collect();
    assert_eq!(ages.len(), 200);
    assert!(ages.is_sorted_by(|one, next| one >= next));
    assert_eq!(state["more"], 11);
    drop((first, others));
}

fn list<'a>(state: &'a Value, name: &str) -> &'a [Value] {
    state[name].as_array().unwrap()
}

fn has_name(name: &str) -> impl Fn(&&Value) -> bool {
    move |item| item["name"] == name || item["task"]["name"] == name
}

#[test]
fn services_are_listed_with_their_restarts_and_last_loss() {
    let registry = Registry::new(SmolSpawner);
    let long = Duration::from_secs(3600);
    registry.named("outbox").service(Restart::on_failure().backoff(long, long), async || Err::<(), _>("é".repeat(1000)));
    registry.named("prices").service(Restart::always(), pending::<()>);
    let mut body = watch(&Dashboard::new(&registry));
    let state = (0..MANY).map(|_| event(&mut body)).find(|state| state["services"][0]["is_running"] == false).unwrap();
    let [outbox, prices] = list(&state, "services") else { panic!("{state}") };
    assert_eq!(outbox["task"]["name"], "outbox");
    assert_eq!(outbox["restarts"], 0);
    let loss = outbox["last_loss"].as_str().unwrap();
    assert!(loss.starts_with("failed: é") && loss.ends_with("é …") && loss.chars().count() < 310, "{loss}");
    assert_eq!((&prices["is_running"], &prices["last_loss"]), (&true.into(), &Value::Null));
    assert_eq!(state["inspected"], false);
    registry.start_shutdown();
}

#[test]
fn child_registries_are_groups() {
    let registry = inspected();
    let tenant = registry.named("tenant").child();
    let connection = tenant.named("connection").child();
    let guards = [&registry, &tenant, &tenant, &connection].map(|registry| registry.named("work").guard().unwrap());
    let state = event(&mut watch(&Dashboard::new(&registry)));
    assert_eq!((&state["in_flight"], &state["names"]), (&4.into(), &serde_json::json!({ "work": 4 })));
    let group = |name| list(&state, "groups").iter().find(has_name(name)).unwrap();
    assert_eq!((&group("tenant")["in_flight"], &group("connection")["in_flight"]), (&3.into(), &1.into()));
    let id = |name| group(name)["task"]["id"].clone();
    assert_eq!(group("connection")["task"]["parent"], id("tenant"));
    let tasks = list(&state, "tasks");
    let count = |parent: &Value| tasks.iter().filter(|task| &task["parent"] == parent).count();
    assert_eq!([Value::Null, id("tenant"), id("connection")].map(|id| count(&id)), [1, 2, 1]);
    assert_eq!(tasks.len(), 4);
    drop(guards);
}

#[test]
fn long_lists_of_groups_and_services_are_limited() {
    let registry = inspected();
    let children: Vec<_> = (0..60).map(|_| registry.child()).collect();
    let _guard = children[55].guard().unwrap();
    (0..110).for_each(|_| registry.service(Restart::always(), pending::<()>));
    let long = Duration::from_secs(3600);
    registry.named("lost").service(Restart::on_failure().backoff(long, long), async || Err::<(), _>("no connection"));
    let mut body = watch(&Dashboard::new(&registry));
    let is_lost = |state: &Value| state["services"][0]["last_loss"] == "failed: no connection";
    let state = (0..MANY).map(|_| event(&mut body)).find(is_lost).unwrap();
    assert_eq!((list(&state, "services").len(), &state["more_services"]), (100, &11.into()));
    assert_eq!((list(&state, "groups").len(), &state["more_groups"]), (50, &10.into()));
    assert_eq!(state["groups"][0]["in_flight"], 1);
    registry.start_shutdown();
}

#[test]
fn child_registry_does_not_keep_the_stream_open() {
    let registry = inspected();
    let child = registry.child();
    let serving = child.named("request").guard().unwrap();
    registry.start_shutdown();
    assert_eq!(event(&mut watch(&Dashboard::new(&registry)))["last"], true);
    drop(serving);
}

#[test]
fn phases_of_a_host_are_listed() {
    let (requests, workers, admin) = (inspected(), inspected(), inspected());
    let host = Host::new(&requests);
    let dashboard = Dashboard::new(&admin).phases(&host, &["requests", "workers"]);
    // The dashboard must also show registries that are added to the host later.
    let host = host.then_with_reserve(&workers, Duration::from_secs(5)).then(&admin);
    let tenant = workers.named("tenant").child();
    let (request, import) = (requests.named("request").guard().unwrap(), tenant.named("import").guard().unwrap());
    workers.named("job").run(pending::<()>());
    let mut body = watch(&dashboard);
    let state = event(&mut body);
    assert_eq!((&state["in_flight"], &state["shutting_down"], &state["inspected"]), (&3.into(), &false.into(), &true.into()));
    let phase = |name: Option<&str>, state: &str, in_flight: usize, reserve: f64| serde_json::json!({ "name": name, "state": state, "in_flight": in_flight, "reserve": reserve, "shutdown_within": null });
    let expected = |first, in_flight| {
        [phase(Some("requests"), first, in_flight, 0.0), phase(Some("workers"), "open", 2, 5.0), phase(None, "open", 0, 0.0)]
    };
    assert_eq!(list(&state["host"], "phases"), expected("open", 1));
    assert_eq!((&state["host"]["is_ready"], &state["host"]["stop"]), (&true.into(), &Value::Null));
    let phase_of = |name| list(&state, "tasks").iter().find(has_name(name)).unwrap()["phase"].clone();
    assert_eq!(["request", "import", "job"].map(phase_of), [0, 1, 1]);
    assert_eq!(state["groups"][0]["phase"], 1);

    requests.start_shutdown();
    let state = event(&mut body);
    assert_eq!(list(&state["host"], "phases"), expected("draining", 1));
    assert_eq!(
        (&state["shutting_down"], &state["host"]["is_ready"], &state["drained"]),
        (&true.into(), &false.into(), &false.into())
    );
    drop(request);
    let state = event(&mut body);
    assert_eq!(list(&state["host"], "phases"), expected("drained", 0));
    assert_eq!(state["last"], false, "the registry of the page is open");

    let job = list(&state, "tasks").iter().find(has_name("job")).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(post(&dashboard, &format!("/abort?id={job}")), StatusCode::NO_CONTENT);
    drop((host, import, tenant));
    block_on(workers.shutdown());
    admin.start_shutdown();
    assert_eq!(last_event(&mut body)["drained"], true);
    assert_eq!(workers.summary().aborted, 1);
}

#[test]
fn streams_share_expensive_events() {
    let registry = inspected();
    let dashboard = Dashboard::new(&registry);
    let first = |dashboard| next(&mut watch(dashboard)).unwrap();
    // Returns whether the second stream gets the same event as the first stream, although one more task is in flight.
    let is_shared = |dashboard, other| {
        let before = first(dashboard);
        let _guard = registry.guard().unwrap();
        before == first(other)
    };
    let few: Vec<_> = (0..900).map(|_| registry.guard().unwrap()).collect();
    assert!(!is_shared(&dashboard, &dashboard));
    let many: Vec<_> = (0..100).map(|_| registry.guard().unwrap()).collect();
    // One attempt may fail, because the time for which an event is shared may expire between the two streams.
    assert!((0..MANY).any(|_| is_shared(&dashboard, &dashboard)));
    let other = dashboard.clone().serving(&["other"]);
    assert!(!is_shared(&dashboard, &other), "a dashboard with other settings has other events");
    drop((few, many));
}

/// Returns whether the stream waits. If the machine has delayed the test, the next event may be due.
fn is_pending(body: &mut DashboardBody, waker: &Waker) -> bool {
    (0..3).any(|_| poll(body, waker).is_pending())
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn shutdown_start_is_sent_immediately() {
    let registry = inspected();
    let _work = registry.named("work").guard().unwrap();
    let mut body = watch(&Dashboard::new(&registry));
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    assert!(poll(&mut body, &waker).is_ready());
    assert!(is_pending(&mut body, &waker));
    registry.start_shutdown();
    assert!(woken.0.load(Ordering::Relaxed));
    let Poll::Ready(Some(text)) = poll(&mut body, &waker) else { panic!("no event is ready") };
    assert!(text.contains("\"shutting_down\":true"), "{text}");
}

/// More events than any stream in these tests sends before it ends.
const MANY: usize = 100;

/// Reads the stream to its end, and returns the last event.
fn last_event(body: &mut DashboardBody) -> Value {
    for _ in 0..MANY {
        let state = event(body);
        assert_eq!(state["last"].as_bool(), Some(body.is_end_stream()));
        if body.is_end_stream() {
            assert_eq!(next(body), None);
            return state;
        }
    }
    panic!("the stream does not end");
}

#[test]
fn stream_ends_when_only_serving_tasks_are_left() {
    let registry = inspected();
    let dashboard = Dashboard::new(&registry).serving(&["stream"]).serving(&["upload"]);
    let serving = ["program", "request", "connection", "stream", "upload"].map(|name| registry.named(name).guard().unwrap());
    let work = registry.named("work").guard().unwrap();
    let mut body = watch(&dashboard);
    assert_eq!(event(&mut body)["last"], false, "the registry is not draining");
    registry.start_shutdown();
    for _ in 0..3 {
        assert_eq!(event(&mut body)["last"], false, "a task is in flight");
    }
    drop(work);
    let last = last_event(&mut body);
    assert_eq!(last["shutting_down"], true);
    assert_eq!(last["drained"], false);
    assert_eq!(last["in_flight"], 5);
    drop(serving);
}

#[test]
fn tasks_without_a_serving_name_keep_the_stream_open() {
    for name in [None, Some("stream")] {
        let registry = inspected();
        let work = name.map_or_else(|| registry.guard(), |name| registry.named(name).guard()).unwrap();
        registry.start_shutdown();
        let mut body = watch(&Dashboard::new(&registry));
        assert_eq!(event(&mut body)["last"], false, "{name:?}");
        drop(work);
        assert_eq!(last_event(&mut body)["drained"], true);
    }
}

#[test]
fn stream_of_uninspected_registry_ends_when_shutdown_starts() {
    let registry = Registry::new(SmolSpawner);
    let _work = registry.named("work").guard().unwrap();
    let mut body = watch(&Dashboard::new(&registry));
    let state = event(&mut body);
    assert_eq!((&state["in_flight"], &state["tasks"], &state["last"]), (&1.into(), &Value::Array(vec![]), &false.into()));
    registry.start_shutdown();
    assert_eq!(event(&mut body)["last"], true);
    assert_eq!(next(&mut body), None);
}

#[test]
fn stream_that_is_opened_during_or_after_a_drain_ends() {
    let registry = inspected();
    let dashboard = Dashboard::new(&registry);
    let request = registry.named("request").guard().unwrap();
    registry.start_shutdown();
    assert_eq!(last_event(&mut watch(&dashboard))["drained"], false);
    drop(request);
    assert_eq!(last_event(&mut watch(&dashboard))["drained"], true);
}

/// The test drops the guard of a response together with its body, as a server does.
#[test]
fn open_streams_do_not_delay_a_drain() {
    let registry = inspected();
    let dashboard = Dashboard::new(&registry);
    let work = registry.named("work").guard().unwrap();
    let mut open: Vec<_> = (0..3).map(|_| (watch(&dashboard), registry.named("request").guard().unwrap())).collect();
    let (summary, ()) = block_on(zip(registry.shutdown(), async {
        let mut work = Some(work);
        for _ in 0..MANY {
            for at in (0..open.len()).rev() {
                if poll_fn(|cx| poll(&mut open[at].0, cx.waker())).await.is_none() {
                    drop(open.swap_remove(at));
                }
            }
            work.take();
        }
        assert!(open.is_empty(), "the streams do not end");
    }));
    assert_eq!(summary.completed, 4);
}

#[test]
fn dashboard_and_its_body_are_send() {
    fn is_send<T: Send + Unpin + 'static>() {}
    is_send::<Dashboard>();
    is_send::<DashboardBody>();
    let body = format!("{:?}", watch(&dashboard()));
    assert_eq!(body, "DashboardBody { is_end_stream: false, .. }");
}

#[cfg(feature = "tower")]
#[test]
fn dashboard_is_a_tower_service() {
    use tower_service::Service;
    let mut dashboard = dashboard();
    assert!(Service::<Request<()>>::poll_ready(&mut dashboard, &mut Context::from_waker(Waker::noop())).is_ready());
    let Ok(response) = block_on(dashboard.call(request("GET", "/", &[HERE])));
    assert_eq!(response.status(), StatusCode::OK);
}
