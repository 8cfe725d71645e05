//! What a Stockade says of itself: the metrics at its admin endpoint.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use testkit::http::Request;

use crate::client::Address;

/// The metrics of one instant, in the Prometheus text format.
#[derive(Debug)]
pub(crate) struct Metrics(String);

const LIMIT: Duration = Duration::from_secs(10);

/// Reads `/metrics`.
pub(crate) async fn scrape(admin: &Address) -> anyhow::Result<Metrics> {
    let Address::Tcp(host_port) = admin else { bail!("the admin endpoint at `{admin}` is not TCP") };
    let answer = Request::get("/metrics").host(host_port).try_send(host_port, LIMIT).await;
    let answer = answer.with_context(|| format!("cannot read the metrics at `{admin}`"))?;
    ensure!(answer.status == 200, "the metrics at `{admin}` have HTTP status {}", answer.status);
    Ok(Metrics(answer.body))
}

// === impl Metrics ===

impl Metrics {
    /// The sum of a metric's series that have this label, or of all; 0 if there is none.
    pub(crate) fn sum(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let label = label.map(|(name, value)| format!("{name}=\"{value}\""));
        let series = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (own, labels) = series.split_once('{').unwrap_or((series, ""));
            let mut labels = labels.trim_end_matches('}').split(',');
            let is_asked = own == name && label.as_deref().is_none_or(|label| labels.any(|own| own == label));
            is_asked.then(|| value.parse::<f64>().ok())?
        });
        series.sum()
    }

    /// What a counter grew by since an earlier instant.
    pub(crate) fn growth(&self, since: &Self, name: &str, label: Option<(&str, &str)>) -> f64 {
        self.sum(name, label) - since.sum(name, label)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const TEXT: &str = "# HELP a_total\n# TYPE a_total counter\na_total{reason=\"x\",kind=\"k\"} 2\na_total{reason=\"y\",kind=\"k\"} 3\na_total_more 7\nb 1.5\n";

    #[test]
    fn series_are_summed_by_label() {
        let metrics = Metrics(TEXT.into());
        assert_eq!(metrics.sum("a_total", None), 5.0);
        assert_eq!(metrics.sum("a_total", Some(("reason", "y"))), 3.0);
        assert_eq!(metrics.sum("a_total", Some(("kind", "k"))), 5.0);
        assert_eq!(metrics.sum("b", None), 1.5);
        assert_eq!(metrics.sum("c", None), 0.0);
        assert_eq!(metrics.growth(&Metrics("b 1\n".into()), "b", None), 0.5);
    }

    #[tokio::test]
    async fn a_page_is_what_follows_the_head() {
        for (answer, expected) in [
            ("HTTP/1.0 200 OK\r\n\r\nb 1.5\n", Some(1.5)),
            ("HTTP/1.0 503 Service Unavailable\r\n\r\nb 1.5\n", None),
            ("what", None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = Address::Tcp(listener.local_addr().unwrap().to_string());
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 512];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /metrics HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (metrics, ()) = tokio::join!(scrape(&address), async {
                serve.await;
            });
            assert_eq!(metrics.ok().map(|metrics| metrics.sum("b", None)), expected, "{answer}");
        }
    }
}
