//! The live page: what it answers whom, and when its stream ends.
#![cfg(feature = "page")]

use background_tasks::{Guard, Registry, SmolSpawner, TaskId};
use background_tasks_host::{Page, PageBody};
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

fn inspected() -> Registry<SmolSpawner> {
    Registry::builder(SmolSpawner).inspect().build()
}

fn page() -> Page {
    Page::new(&inspected())
}

fn request(method: &str, uri: &str, heads: &[(&str, &str)]) -> Request<()> {
    let request = Request::builder().method(method).uri(uri);
    heads.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

const HERE: (&str, &str) = ("host", "localhost:8080");
const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");

fn ask(page: &Page, method: &str, uri: &str) -> Response<PageBody> {
    page.respond(&request(method, uri, &[HERE]))
}

fn order(page: &Page, uri: &str) -> StatusCode {
    page.respond(&request("POST", uri, &[HERE, SAME])).status()
}

fn head<'a>(response: &'a Response<PageBody>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn poll(body: &mut PageBody, waker: &Waker) -> Poll<Option<String>> {
    let frame = Pin::new(body).poll_frame(&mut Context::from_waker(waker));
    frame.map(|frame| frame.map(|frame| String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap()))
}

fn next(body: &mut PageBody) -> Option<String> {
    block_on(poll_fn(|cx| poll(body, cx.waker())))
}

/// The next event.
fn event(body: &mut PageBody) -> Value {
    let event = next(body).expect("an event");
    let lines: Vec<_> = event.split('\n').collect();
    let &[data, "", ""] = &lines[..] else { panic!("{event:?}") };
    serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap()
}

fn whole(response: Response<PageBody>) -> String {
    let mut body = response.into_body();
    let length = body.size_hint().exact().unwrap();
    let text = next(&mut body).unwrap_or_default();
    assert_eq!(text.len() as u64, length);
    assert!(body.is_end_stream());
    assert_eq!(next(&mut body), None);
    text
}

#[test]
fn the_page_is_one_file_at_any_path() {
    for path in ["/", "/background", "/background/", "/a/b/background", "/events/"] {
        let response = ask(&page(), "GET", path);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(head(&response, "content-type"), "text/html; charset=utf-8");
        assert_eq!(head(&response, "cache-control"), "no-store");
        assert_eq!(head(&response, "x-content-type-options"), "nosniff");
        assert_eq!(head(&response, "referrer-policy"), "no-referrer");
        let length: usize = head(&response, "content-length").parse().unwrap();
        let html = whole(response);
        assert_eq!(html.len(), length);
        assert!(html.starts_with("<!doctype html>"));
        assert_eq!(html.matches("//www.w3.org/2000/svg").count(), html.matches("://").count(), "it needs no network");
    }
}

#[test]
fn a_head_has_the_heads_alone() {
    let (get, head) = (ask(&page(), "GET", "/"), ask(&page(), "HEAD", "/"));
    assert_eq!(get.headers(), head.headers());
    assert_eq!(whole(head), "");
}

#[test]
fn the_policy_lets_the_pages_own_script_and_style_run_alone() {
    let response = ask(&page(), "GET", "/");
    let policy = head(&response, "content-security-policy").to_owned();
    let directives: Vec<_> = policy.split("; ").collect();
    for directive in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]
    {
        assert!(directives.contains(&directive), "{directive} is not in {policy}");
    }
    // A parser makes each line's end this one, before a browser takes the hash.
    let html = whole(response).replace("\r\n", "\n");
    for element in ["script", "style"] {
        let (_, rest) = html.split_once(&format!("<{element}>")).unwrap();
        let (inside, _) = rest.split_once(&format!("</{element}>")).unwrap();
        let hash = BASE64_STANDARD.encode(Sha256::digest(inside));
        let directive = format!("{element}-src 'sha256-{hash}'");
        assert!(directives.contains(&&*directive), "{directive} is not in {policy}");
    }
}

#[test]
fn other_methods_are_told_which_are_allowed() {
    for (method, path, allowed) in [
        ("POST", "/background", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("HEAD", "/background/events", "GET"),
        ("POST", "/events", "GET"),
        ("GET", "/background/abort?id=1-1", "POST"),
        ("HEAD", "/abort", "POST"),
    ] {
        let response = ask(&page(), method, path);
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(head(&response, "allow"), allowed, "{method} {path}");
    }
}

/// What each resource answers.
fn all(page: &Page, heads: &[(&str, &str)]) -> [StatusCode; 3] {
    let heads = [heads, &[SAME]].concat();
    [("GET", "/"), ("GET", "/events"), ("POST", "/abort?id=1-1")]
        .map(|(method, path)| page.respond(&request(method, path, &heads)).status())
}

const SERVED: [StatusCode; 3] = [StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND];
const REFUSED: [StatusCode; 3] = [StatusCode::FORBIDDEN; 3];

#[test]
fn it_is_served_where_no_name_server_has_a_say() {
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
        assert_eq!(all(&page(), &[("host", host)]), SERVED, "{host}");
    }
}

#[test]
fn it_is_not_served_under_other_names() {
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
        assert_eq!(all(&page(), &[("host", host)]), REFUSED, "{host}");
    }
    assert_eq!(all(&page(), &[]), REFUSED);
    assert_eq!(all(&page(), &[("host", "localhost"), ("host", "evil.example")]), REFUSED);
    assert_eq!(all(&page(), &[("host", "evil.example"), ("host", "localhost")]), REFUSED);
}

#[test]
fn http2_tells_the_host_in_the_uri() {
    let at = |uri: &str, heads: &[_]| page().respond(&request("GET", uri, heads)).status();
    assert_eq!(at("https://localhost:8080/", &[]), StatusCode::OK);
    assert_eq!(at("https://localhost:8080/", &[HERE]), StatusCode::OK);
    assert_eq!(at("https://evil.example/", &[]), StatusCode::FORBIDDEN);
    assert_eq!(at("https://evil.example/", &[HERE]), StatusCode::FORBIDDEN);
    assert_eq!(at("https://localhost@evil.example/", &[]), StatusCode::FORBIDDEN);
    assert_eq!(at("https://localhost:8080/", &[("host", "evil.example")]), StatusCode::FORBIDDEN);
    let abort = |origin| page().respond(&request("POST", "https://localhost:8080/abort?id=1-1", &[("origin", origin)])).status();
    assert_eq!(abort("https://localhost:8080"), StatusCode::NOT_FOUND);
    assert_eq!(abort("https://localhost:8081"), StatusCode::FORBIDDEN);
}

#[test]
fn a_name_can_be_allowed() {
    let page = page().allow_host("Tasks.example").allow_host("other.example");
    for host in ["tasks.example", "TASKS.EXAMPLE:8443", "other.example:80", "localhost"] {
        assert_eq!(all(&page, &[("host", host)]), SERVED, "{host}");
    }
    for host in ["example", "a.tasks.example", "tasks.example.evil", "tasks.example@evil.example", "tasks.example:1@evil.example"] {
        assert_eq!(all(&page, &[("host", host)]), REFUSED, "{host}");
    }
}

/// A registry with a task that can be aborted, and its id.
fn straggling() -> (Registry<SmolSpawner>, TaskId) {
    let registry = inspected();
    registry.named("straggler").run(pending::<()>());
    let id = registry.tasks()[0].id().unwrap();
    (registry, id)
}

#[test]
fn an_order_of_the_page_aborts() {
    let here = ("origin", "http://localhost:8080");
    for heads in [&[HERE, SAME][..], &[HERE, here], &[HERE, here, SAME], &[HERE, ("origin", "https://localhost:8080")]] {
        let (registry, id) = straggling();
        let response = Page::new(&registry).respond(&request("POST", &format!("/background/abort?id={id}"), heads));
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{heads:?}");
        assert_eq!(whole(response), "");
        assert_eq!(block_on(registry.shutdown()).aborted, 1);
    }
}

#[test]
fn no_order_of_others_changes_anything() {
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
        &[site("cross-site"), SAME],
        &[SAME, site("cross-site")],
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
    let (registry, id) = straggling();
    let page = Page::new(&registry);
    for attack in attacks {
        let heads = [&[HERE], *attack].concat();
        let response = page.respond(&request("POST", &format!("/abort?id={id}"), &heads));
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{attack:?}");
        assert!(!registry.tasks()[0].abort_requested(), "{attack:?}");
    }
    assert_eq!(order(&page, &format!("/abort?id={id}")), StatusCode::NO_CONTENT);
    block_on(registry.shutdown());
}

#[test]
fn an_order_is_answered() {
    let (registry, id) = straggling();
    let page = Page::new(&registry);
    let guard = registry.named("guard").guard().unwrap();
    let guarded = registry.tasks().into_iter().find(|task| task.name() == Some("guard")).unwrap().id().unwrap();
    for none in
        ["/abort", "/abort?", "/abort?id", "/abort?id=", "/abort?id=1", "/abort?id=+1-1", "/abort?ID=1-1", "/abort?id=1-1%20"]
    {
        assert_eq!(order(&page, none), StatusCode::BAD_REQUEST, "{none}");
    }
    assert_eq!(order(&page, "/abort?id=4000000000-1"), StatusCode::NOT_FOUND);
    assert_eq!(order(&page, &format!("/abort?id={guarded}")), StatusCode::CONFLICT);
    assert_eq!(order(&page, &format!("/a/b/abort?why=not&id={id}&id={guarded}")), StatusCode::NO_CONTENT);
    drop(guard);
    block_on(registry.wait_idle());
    assert_eq!(order(&page, &format!("/abort?id={id}")), StatusCode::NOT_FOUND);
    assert_eq!(registry.summary().aborted, 1);
}

fn watch(page: &Page) -> PageBody {
    ask(page, "GET", "/background/events").into_body()
}

#[test]
fn events_are_told_at_once_and_again() {
    let registry = inspected();
    let response = ask(&Page::new(&registry), "GET", "/events");
    assert_eq!(head(&response, "content-type"), "text/event-stream");
    assert_eq!(head(&response, "cache-control"), "no-store");
    assert_eq!(head(&response, "x-accel-buffering"), "no");
    assert_eq!(response.headers().get(header::CONTENT_LENGTH), None);
    let mut body = response.into_body();
    assert_eq!(body.size_hint().exact(), None);
    let Poll::Ready(Some(first)) = poll(&mut body, Waker::noop()) else { panic!("not at once") };
    assert!(first.starts_with("data: {\"in_flight\":0,"), "{first}");
    assert_eq!(poll(&mut body, Waker::noop()), Poll::Pending);
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
fn the_oldest_two_hundred_are_told_one_by_one() {
    let registry = inspected();
    let first = registry.named("first").guard().unwrap();
    let others: Vec<Guard> = (0..210).map(|_| registry.named("other").guard().unwrap()).collect();
    let told = event(&mut watch(&Page::new(&registry)));
    assert_eq!(told["in_flight"], 211);
    assert_eq!(told["names"], serde_json::json!({ "first": 1, "other": 210 }));
    let ages: Vec<f64> = told["tasks"].as_array().unwrap().iter().map(|task| task["age_seconds"].as_f64().unwrap()).collect();
    assert_eq!(ages.len(), 200);
    assert!(ages.is_sorted_by(|one, next| one >= next));
    assert_eq!(told["more"], 11);
    drop((first, others));
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_shutdowns_beginning_is_told_at_once() {
    let registry = inspected();
    let _work = registry.named("work").guard().unwrap();
    let mut body = watch(&Page::new(&registry));
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    assert!(poll(&mut body, &waker).is_ready());
    assert!(poll(&mut body, &waker).is_pending());
    registry.shutdown();
    assert!(woken.0.load(Ordering::Relaxed));
    let Poll::Ready(Some(told)) = poll(&mut body, &waker) else { panic!("not at once") };
    assert!(told.contains("\"shutting_down\":true"), "{told}");
}

/// More events than any stream here has: one that goes on never ends.
const MANY: usize = 100;

/// Watches until the stream ends; returns its last event.
fn watch_the_end(body: &mut PageBody) -> Value {
    for _ in 0..MANY {
        let told = event(body);
        assert_eq!(told["last"].as_bool(), Some(body.is_end_stream()));
        if body.is_end_stream() {
            assert_eq!(next(body), None);
            return told;
        }
    }
    panic!("it does not end");
}

#[test]
fn the_stream_ends_when_only_what_serves_is_left() {
    let registry = inspected();
    let page = Page::new(&registry).serving(&["connection"]).serving(&["stream"]);
    let serving = ["program", "request", "connection", "stream"].map(|name| registry.named(name).guard().unwrap());
    let work = registry.named("work").guard().unwrap();
    let mut body = watch(&page);
    assert_eq!(event(&mut body)["last"], false, "it is not draining");
    registry.shutdown();
    for _ in 0..3 {
        assert_eq!(event(&mut body)["last"], false, "work is in flight");
    }
    drop(work);
    let last = watch_the_end(&mut body);
    assert_eq!(last["shutting_down"], true);
    assert_eq!(last["drained"], false);
    assert_eq!(last["in_flight"], 4);
    drop(serving);
}

#[test]
fn what_has_no_name_or_was_not_told_to_serve_is_watched() {
    for name in [None, Some("connection")] {
        let registry = inspected();
        let work = name.map_or_else(|| registry.guard(), |name| registry.named(name).guard()).unwrap();
        registry.shutdown();
        let mut body = watch(&Page::new(&registry));
        assert_eq!(event(&mut body)["last"], false, "{name:?}");
        drop(work);
        assert_eq!(watch_the_end(&mut body)["drained"], true);
    }
}

#[test]
fn a_registry_that_is_not_inspected_ends_it_when_its_shutdown_begins() {
    let registry = Registry::new(SmolSpawner);
    let _work = registry.named("work").guard().unwrap();
    let mut body = watch(&Page::new(&registry));
    let told = event(&mut body);
    assert_eq!((&told["in_flight"], &told["tasks"], &told["last"]), (&1.into(), &Value::Array(vec![]), &false.into()));
    registry.shutdown();
    assert_eq!(event(&mut body)["last"], true);
    assert_eq!(next(&mut body), None);
}

#[test]
fn a_stream_that_is_opened_in_a_drain_or_after_it_ends_too() {
    let registry = inspected();
    let page = Page::new(&registry);
    let request = registry.named("request").guard().unwrap();
    registry.shutdown();
    assert_eq!(watch_the_end(&mut watch(&page))["drained"], false);
    drop(request);
    assert_eq!(watch_the_end(&mut watch(&page))["drained"], true);
}

/// As a server does it: each response's guard goes with its body.
#[test]
fn streams_do_not_hold_up_a_drain() {
    let registry = inspected();
    let page = Page::new(&registry);
    let work = registry.named("work").guard().unwrap();
    let mut open: Vec<_> = (0..3).map(|_| (watch(&page), registry.named("request").guard().unwrap())).collect();
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
        assert!(open.is_empty(), "they do not end");
    }));
    assert_eq!(summary.completed, 4);
}

#[test]
fn a_page_and_its_body_go_to_any_thread() {
    fn goes<T: Send + Unpin + 'static>() {}
    goes::<Page>();
    goes::<PageBody>();
    let body = format!("{:?}", watch(&page()));
    assert_eq!(body, "PageBody { is_end_stream: false, .. }");
}

#[cfg(feature = "tower")]
#[test]
fn it_is_a_service_of_towers() {
    use tower_service::Service;
    let mut page = page();
    assert!(Service::<Request<()>>::poll_ready(&mut page, &mut Context::from_waker(Waker::noop())).is_ready());
    let Ok(response) = block_on(page.call(request("GET", "/", &[HERE])));
    assert_eq!(response.status(), StatusCode::OK);
}
