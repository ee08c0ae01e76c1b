//! Plots of the results: bars of rates, each panel scaled to its best, and latencies from median to
//! maximum on one logarithmic axis. The tables hold the numbers.

use std::fmt::Write as _;

use xs_bench::report::human;

use crate::rows::Row;
use crate::sample::{Sample, of, spread};

const WIDTH: f64 = 430.0;
const COLUMNS: usize = 3;
/// Height of a bar with the space to the next, and of the space above the first.
const LINE: f64 = 17.0;
const HEAD: f64 = 26.0;
/// Where bars begin, and the length of the longest.
const LEFT: f64 = 82.0;
const LENGTH: f64 = 250.0;
const LATENCY_WIDTH: f64 = 900.0;
const LATENCY_LEFT: f64 = 110.0;
const COLOURS: [&str; 5] = ["#0a6", "#83b", "#c43", "#36c", "#999"];

fn begin(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    )
}

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Bars: median, and a line over the range.
pub(crate) fn rates(rows: &[&Row], systems: &[&str], samples: &[Sample]) -> String {
    let height = HEAD + LINE * systems.len() as f64 + 10.0;
    let mut svg = begin(WIDTH * COLUMNS as f64, height * rows.len().div_ceil(COLUMNS) as f64);
    for (number, row) in rows.iter().enumerate() {
        let (x, y) = ((number % COLUMNS) as f64 * WIDTH, (number / COLUMNS) as f64 * height);
        let _ = writeln!(
            svg,
            "<g transform=\"translate({x} {y})\">\n\
             <text x=\"10\" y=\"18\" font-weight=\"bold\">{}, {}</text>",
            row.title,
            row.unit()
        );
        let spreads = systems
            .iter()
            .map(|system| spread(of(samples, row.key, system).map(|figures| figures.value)));
        let spreads: Vec<_> = spreads.collect();
        let most = spreads.iter().flatten().map(|spread| spread.high).fold(1e-9, f64::max);
        for (at, (system, spread)) in systems.iter().zip(&spreads).enumerate() {
            let y = HEAD + at as f64 * LINE;
            let _ = writeln!(svg, "<text x=\"10\" y=\"{:.0}\">{system}</text>", y + 11.0);
            let Some(spread) = spread else {
                let _ = writeln!(
                    svg,
                    "<text x=\"{LEFT}\" y=\"{:.0}\" fill=\"#999\">-</text>",
                    y + 11.0
                );
                continue;
            };
            let long = |value: f64| value / most * LENGTH;
            let (low, high) = (LEFT + long(spread.low), LEFT + long(spread.high));
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"13\" fill=\"{}\"/>\
                 <path d=\"M{low:.1} {:.1}H{high:.1}\" stroke=\"black\"/>\
                 <text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                long(spread.median),
                colour(at),
                y + 6.5,
                high + 5.0,
                y + 11.0,
                human(spread.median, row.unit())
            );
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lines from p50 over p99 and p99.9 to the maximum.
pub(crate) fn latencies(rows: &[&Row], systems: &[&str], samples: &[Sample]) -> String {
    let panel = HEAD + LINE * systems.len() as f64 + 6.0;
    let height = panel * rows.len() as f64 + 40.0;
    let mut svg = begin(LATENCY_WIDTH, height);
    let across = |us: f64| {
        let share = (us.max(1.0).log10() / 6.0).min(1.0);
        LATENCY_LEFT + share * (LATENCY_WIDTH - LATENCY_LEFT - 30.0)
    };
    for (decade, name) in
        ["1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s"].iter().enumerate()
    {
        let x = across(10_f64.powi(decade as i32));
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} 10V{:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{name}</text>",
            height - 34.0,
            height - 20.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"10\" y=\"{:.0}\" fill=\"#666\">dot: median; ticks: p99, p99.9, maximum</text>",
        height - 5.0
    );
    for (number, row) in rows.iter().enumerate() {
        let top = number as f64 * panel;
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{:.0}\" font-weight=\"bold\">{}</text>",
            top + 18.0,
            row.title
        );
        for (at, system) in systems.iter().enumerate() {
            let y = top + HEAD + at as f64 * LINE + 6.0;
            let _ = writeln!(svg, "<text x=\"10\" y=\"{:.0}\">{system}</text>", y + 4.0);
            let figures = of(samples, row.key, system);
            let median =
                |part: usize| spread(figures.clone().filter_map(|one| Some(one.latencies?[part])));
            let parts: Option<Vec<f64>> =
                (0..4).map(|part| Some(across(median(part)?.median))).collect();
            let Some(parts) = parts else { continue };
            let (first, last, colour) = (parts[0], parts[3], colour(at));
            let _ = writeln!(
                svg,
                "<path d=\"M{first:.1} {y:.1}H{last:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <circle cx=\"{first:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
            );
            for x in &parts[1..] {
                let _ = writeln!(
                    svg,
                    "<path d=\"M{x:.1} {:.1}v8\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                    y - 4.0
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;
    use crate::sample::Figures;

    #[test]
    fn plots_hold_what_was_measured_and_no_broken_number() {
        let latencies = Some([10.0, 20.0, 0.0, 1e9]);
        let figures = Figures { value: 5000.0, latencies, ..Figures::default() };
        let samples = [Sample { row: ROWS[0].key, system: "xs", rep: 0, figures }];
        for svg in [
            rates(&[&ROWS[0]], &["xs", "Redis"], &samples),
            super::latencies(&[&ROWS[0]], &["xs", "Redis"], &samples),
        ] {
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert!(rates(&[&ROWS[0]], &["xs"], &samples).contains("5000 /s"));
    }
}
