//! A self-contained HTML page with the parameters, a table and charts. It loads nothing.

use super::plot::{Chart, STYLE, escaped};

const PAGE_STYLE: &str = "\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;\
background:#fff;color:#1f2328}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}\
.wide{overflow-x:auto}td,th{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #8b949e55;white-space:nowrap}\
td:first-child,th:first-child{text-align:left}.charts{display:grid;\
grid-template-columns:repeat(auto-fit,minmax(28rem,1fr));gap:1.5rem}svg{width:100%;height:auto}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}}";

/// Formats a page: a title, facts as pairs of name and value, tables whose first row is their head, and charts.
#[must_use]
pub fn page(
    title: &str,
    facts: &[(String, String)],
    tables: &[Vec<Vec<String>>],
    charts: &[Chart],
) -> String {
    let title = escaped(title);
    let facts: String = facts
        .iter()
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value)))
        .collect();
    let tables: String = tables
        .iter()
        .map(|rows| format!("<div class=\"wide\">{}</div>\n", table(rows)))
        .collect();
    let charts: String = charts
        .iter()
        .map(|chart| format!("<div>{}</div>", chart.svg()))
        .collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{title}</title><style>{PAGE_STYLE}{STYLE}</style></head>\n<body><h1>{title}</h1>\n<dl>{facts}</dl>\n\
         {tables}<div class=\"charts\">{charts}</div></body></html>\n"
    )
}

fn table(rows: &[Vec<String>]) -> String {
    let row = |cells: &Vec<String>, tag: &str| {
        let cells: String = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)))
            .collect();
        format!("<tr>{cells}</tr>")
    };
    let Some((head, body)) = rows.split_first() else {
        return String::new();
    };
    let body: String = body.iter().map(|cells| row(cells, "td")).collect();
    format!(
        "<table><thead>{}</thead><tbody>{body}</tbody></table>",
        row(head, "th")
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::plot::{Scale, Series};

    /// The elements that are still open at the end of the page.
    fn open_elements(page: &str) -> Vec<String> {
        let mut open: Vec<String> = Vec::new();
        for tag in page.split('<').skip(1) {
            let tag = tag.split_once('>').unwrap().0;
            let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
            match (
                tag.starts_with('/'),
                tag.ends_with('/') || tag.starts_with('!'),
            ) {
                (true, _) => assert_eq!(open.pop().as_deref(), Some(name), "closed by {tag}"),
                (false, true) => {}
                (false, false) => open.push(name.to_owned()),
            }
        }
        open
    }

    #[test]
    fn a_page_closes_its_elements_escapes_its_texts_and_loads_nothing() {
        let chart = Chart {
            title: "TTFT <ms>".to_owned(),
            y_label: "ms".to_owned(),
            x_label: "concurrency".to_owned(),
            x: Scale::Log,
            y: Scale::Linear,
            series: vec![Series {
                name: "p50 & more".to_owned(),
                points: vec![(1.0, 2.0), (16.0, 3.0)],
            }],
        };
        let facts = [("url".to_owned(), "http://a/<script>".to_owned())];
        let rows = [vec!["a".to_owned(), "<b>".to_owned()], vec!["c".to_owned()]];
        let page = page("\"x\" <i>", &facts, &[rows.to_vec()], &[chart]);
        assert_eq!(open_elements(&page), Vec::<String>::new());
        for never in ["<script", "<i>", "<b>", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(never), "{never}");
        }
        assert!(page.contains("<th>&lt;b&gt;</th>") && page.contains("p50 &amp; more"));
    }
}
