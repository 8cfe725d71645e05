//! What the central store must reach, as a table.

use crate::findings::{Bound, Goal, Unit, goal};

pub(crate) const PUBLISH_P99: Goal =
    goal("publish-p99", "publish -> enforced by every sidecar, p99", Bound::AtMost(50.0), Unit::Millis);
pub(crate) const PUBLISH_P50: Goal = goal("publish-p50", "the same, p50", Bound::Anywhere, Unit::Millis);
pub(crate) const PUBLISH_MAX: Goal = goal("publish-max", "the same, the slowest", Bound::Anywhere, Unit::Millis);
pub(crate) const PUBLISH_CPU: Goal =
    goal("publish-cpu", "CPU of a sidecar for a publish, mean", Bound::Anywhere, Unit::Millis);
pub(crate) const DENY_P99: Goal =
    goal("deny-p99", "emergency denial -> refused by every sidecar, p99", Bound::AtMost(50.0), Unit::Millis);
pub(crate) const DENY_P50: Goal = goal("deny-p50", "the same, p50", Bound::Anywhere, Unit::Millis);
pub(crate) const DENY_MAX: Goal = goal("deny-max", "the same, the slowest", Bound::Anywhere, Unit::Millis);
pub(crate) const STOPPED: Goal =
    goal("stopped-server", "stopped server noticed, the slowest sidecar", Bound::AtMost(3.5), Unit::Seconds);
pub(crate) const RESUMED: Goal =
    goal("resumed-server", "server goes on -> fresh again, the slowest sidecar", Bound::Anywhere, Unit::Seconds);
pub(crate) const RECONNECT: Goal = goal(
    "reconnect",
    "server ready after a crash -> every feed verified current, the slowest",
    Bound::AtMost(5.0),
    Unit::Seconds,
);
pub(crate) const IDLE_RSS: Goal =
    goal("idle-rss", "RSS of an idle sidecar, store feed, 1,000 policies", Bound::AtMost(25.0), Unit::Mebibytes);
pub(crate) const IDLE_CPU: Goal = goal("idle-cpu", "the same, share of a core", Bound::Below(0.5), Unit::Percent);
pub(crate) const FEEDS_RSS: Goal =
    goal("feeds-rss", "RSS of the NATS server with as many feeds", Bound::Anywhere, Unit::Mebibytes);
pub(crate) const SERVER_RSS: Goal =
    goal("server-rss", "RSS of the NATS server with all sidecars", Bound::Anywhere, Unit::Mebibytes);
pub(crate) const SERVER_CPU: Goal = goal(
    "server-cpu",
    "CPU of the NATS server, idle with all sidecars, share of a core",
    Bound::Anywhere,
    Unit::Percent,
);
