//! A report as text for a terminal, as Markdown, and as a page that needs nothing else.

use std::fmt::Write as _;

use super::{Finding, Report};
use crate::report;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
    table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #ddd}\
    td.n{text-align:right;white-space:nowrap}.pass{color:#00694b;font-weight:600}.FAIL{color:#b03a00;font-weight:600}\
    figure{margin:2rem 0}figcaption{color:#555}svg{max-width:100%;height:auto}code,pre{background:#f5f5f5}pre{padding:.6rem;overflow:auto}";

impl Report {
    /// The table, and below it what each of its numbers is made of.
    pub(crate) fn text(&self) -> String {
        let cells = self.findings.iter().map(cells);
        let rows: Vec<_> =
            std::iter::once(["what", "measured", "must reach", ""].map(String::from)).chain(cells).collect();
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or_default();
        let (what, measured, goal) = (width(0), width(1), width(2));
        let mut text = String::new();
        // Writing to a String cannot fail, here and below.
        for [name, value, bound, mark] in &rows {
            let line = format!("{name:what$}  {value:>measured$}  {bound:>goal$}  {mark}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for finding in &self.findings {
            let _ = writeln!(text, "\n{}: {}", finding.goal.name, notes(finding).join("\n  "));
        }
        for broken in &self.broken {
            let _ = writeln!(text, "\nbroke off: {broken}");
        }
        if !self.rows.is_empty() {
            let _ = write!(text, "\n{}", report::table(&self.rows));
        }
        text
    }

    /// The same as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n\n{}\n\n", self.title, self.intro, self.made_by());
        text.push_str("| what | measured | must reach | |\n|---|---|---|---|\n");
        for finding in &self.findings {
            let [name, value, bound, mark] = cells(finding);
            let _ = writeln!(text, "| {name} | {value} | {bound} | {mark} |");
        }
        text.push_str("\n## What each number is made of\n\n");
        for finding in &self.findings {
            let _ = writeln!(text, "- **{}**: {}", finding.goal.what, notes(finding).join(". "));
        }
        for broken in &self.broken {
            let _ = writeln!(text, "- broke off: {broken}");
        }
        if !self.rows.is_empty() {
            let _ = write!(text, "\n## All measurements\n\n```text\n{}```\n", report::table(&self.rows));
        }
        text
    }

    /// The same as a page, with the figures.
    ///
    /// # Errors
    /// If a figure cannot be drawn.
    pub(crate) fn html(&self) -> anyhow::Result<String> {
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{}</p>\n<p>{}</p>\n\
             <table>\n<tr><th>what</th><th>measured</th><th>must reach</th><th></th></tr>\n",
            escape(self.intro),
            code(&self.made_by()),
            title = escape(self.title)
        );
        for finding in &self.findings {
            let [name, value, bound, mark] = cells(finding).map(|cell| escape(&cell));
            let _ = writeln!(
                text,
                "<tr><td>{name}</td><td class=\"n\">{value}</td><td class=\"n\">{bound}</td><td class=\"{mark}\">{mark}</td></tr>"
            );
        }
        text.push_str("</table>\n");
        for figure in &self.figures {
            let (title, caption) = (escape(figure.title), escape(&figure.caption));
            let svg = figure.svg()?;
            let _ = writeln!(text, "<h2>{title}</h2>\n<figure>\n{svg}<figcaption>{caption}</figcaption></figure>");
        }
        text.push_str("<h2>What each number is made of</h2>\n<ul>\n");
        for finding in &self.findings {
            let notes = code(&notes(finding).join(". "));
            let _ = writeln!(text, "<li><b>{}</b>: {notes}</li>", escape(finding.goal.what));
        }
        for broken in &self.broken {
            let _ = writeln!(text, "<li>broke off: {}</li>", escape(broken));
        }
        let table = escape(&report::table(&self.rows));
        let _ = writeln!(text, "</ul>\n<h2>All measurements</h2>\n<pre>{table}</pre>\n</body></html>");
        Ok(text)
    }

    fn made_by(&self) -> String {
        format!("Made by `{}` on {}.", self.command, self.machine)
    }
}

fn cells(finding: &Finding) -> [String; 4] {
    [finding.goal.what.into(), finding.shown(), finding.goal.must_reach(), finding.mark().into()]
}

/// What a reader must know of a finding: how the rounds differ, what it is made of, what is wrong with it.
fn notes(finding: &Finding) -> Vec<String> {
    let faults = finding.faults.iter().map(|fault| format!("not what it claims: {fault}"));
    finding.spread().into_iter().chain([finding.evidence.clone()]).chain(faults).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Escaped text in which what stands between backticks is code.
fn code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let part = |(at, part): (usize, &str)| {
        let part = escape(part);
        if at % 2 == 1 { format!("<code>{part}</code>") } else { part }
    };
    parts.map(part).collect()
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::engine::figure::{Figure, latencies};
    use crate::engine::goals::{HIT, MEMORY};

    fn report() -> Report {
        let mut latency = Histogram::new(3).unwrap();
        latency.record(5_000).unwrap();
        Report {
            title: "Numbers",
            intro: "How to read them.",
            findings: vec![
                Finding::new(&HIT, vec![1.0, 1.1, 1.2], "3 < 4 & `cache`".into(), Vec::new()),
                Finding::new(&MEMORY, vec![70.0], "much".into(), vec!["too few entries".into()]),
            ],
            rows: Vec::new(),
            figures: vec![Figure { title: "Latency", caption: "<read>".into(), ..latencies([("a", &latency)]) }],
            broken: vec!["Push: no server".into()],
            command: "loadtest engine".into(),
            machine: "a machine".into(),
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_goal() {
        let text = report().text();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("hits, requests/s against the floor"), "{text}");
        assert!(lines[1].ends_with("1.10      >= 1.00  pass"), "{text}");
        assert!(lines[2].ends_with("70.0 MiB  <= 64.0 MiB  FAIL"), "{text}");
        assert!(text.contains("hit: 1.00 to 1.20 in 3 rounds\n  3 < 4"), "{text}");
        assert!(text.contains("not what it claims: too few entries"), "{text}");
    }

    #[test]
    fn markdown_and_page_say_the_same() {
        let (markdown, html) = (report().markdown(), report().html().unwrap());
        assert!(markdown.contains("| hits, requests/s against the floor | 1.10 | >= 1.00 | pass |"), "{markdown}");
        assert!(markdown.contains("Made by `loadtest engine` on a machine."), "{markdown}");
        assert!(
            html.contains("<td class=\"n\">1.10</td><td class=\"n\">&gt;= 1.00</td><td class=\"pass\">pass</td>"),
            "{html}"
        );
        assert!(markdown.contains("- broke off: Push: no server"), "{markdown}");
        for shown in [
            "broke off: Push: no server",
            "3 &lt; 4 &amp; <code>cache</code>",
            "&lt;read&gt;",
            "<svg",
            "<code>loadtest engine</code>",
        ] {
            assert!(html.contains(shown), "no {shown} in {html}");
        }
        for elsewhere in ["src=", "href=", "<script"] {
            assert!(!html.contains(elsewhere), "{elsewhere}: the page must need nothing else");
        }
    }
}
