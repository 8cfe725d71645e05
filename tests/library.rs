//! The engine in the process of its caller, as docs of the crate show it: without a socket.

use stockade::config::Config;
use stockade::engine::Engine;
use stockade::model::{Effect, Outcome, Reason, Undecided};
use stockade::proto::view::CheckRequest;
use tempfile::TempDir;

use crate::fixture::{frame, line};

/// What a request comes to.
fn check(engine: &Engine, method: &str, path: &str) -> Outcome {
    let bytes = frame(&line(method, path));
    engine.check(&CheckRequest::decode(&bytes).expect("a CheckRequest"))
}

#[tokio::test]
async fn an_engine_decides_what_its_feed_has_put_in_force() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::create_dir(dir.path().join("shop")).unwrap();
    write("stockade.yaml", "bundles: [{directory: shop}]\nfeed: {poll: 1s, debounce: 1ms}\n");
    write("shop/bundle.yaml", "name: shop\n");
    write("shop/a.cedar", "permit (principal, action == Action::\"GET\", resource);");
    let config = Config::load(&dir.path().join("stockade.yaml")).unwrap();
    let (engine, feed) = Engine::build(&config).await.unwrap();
    assert!(matches!(check(&engine, "GET", "/"), Outcome::Undecided(Undecided::NotReady)), "before its feed runs");

    let feed = tokio::spawn(feed);
    let mut snapshots = engine.snapshots.clone();
    snapshots.wait_for(Option::is_some).await.unwrap();
    let ended = |outcome: Outcome| match outcome {
        Outcome::Decided(decision) => (decision.effect, decision.reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(ended(check(&engine, "GET", "/")), (Effect::Allow, Reason::Policy));
    assert_eq!(ended(check(&engine, "GET", "/")), (Effect::Allow, Reason::Policy), "again, from what is remembered");
    assert_eq!(ended(check(&engine, "PUT", "/")), (Effect::Deny, Reason::DefaultDeny));
    assert!(matches!(check(&engine, "GET", "//"), Outcome::Unmapped(_)));
    let metrics = engine.render_metrics();
    assert!(metrics.contains("\nstockade_cache_hits_total 1\n"), "{metrics}");

    // What is pushed counts at once.
    snapshots.mark_unchanged();
    write("shop/a.cedar", "permit (principal, action == Action::\"PUT\", resource);");
    snapshots.changed().await.unwrap();
    assert_eq!(ended(check(&engine, "GET", "/")), (Effect::Deny, Reason::DefaultDeny));
    assert_eq!(ended(check(&engine, "PUT", "/")), (Effect::Allow, Reason::Policy));
    feed.abort();
}
