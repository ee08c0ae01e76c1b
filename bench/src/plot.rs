//! Curves as an SVG file: small panels with logarithmic axes, one for each figure. The numbers are
//! in the rows.

use std::fmt::Write as _;

use crate::report::human;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 220.0;
/// Margins of a panel: left, top, right, bottom.
const LEFT: f64 = 58.0;
const TOP: f64 = 30.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 34.0;

/// One panel: a figure over what it depends on. All values are above zero.
#[derive(Debug)]
pub struct Panel {
    /// The heading.
    pub title: String,
    /// The label of the horizontal axis: what the points depend on.
    pub across: &'static str,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// Returns the panels as SVG, with this many per row.
pub fn svg(panels: &[Panel], columns: usize) -> String {
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (WIDTH * columns as f64, HEIGHT * rows as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        let (x, y) = ((number % columns) as f64 * WIDTH, (number / columns) as f64 * HEIGHT);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel.draw(&mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String) {
        let xs = decades(self.points.iter().map(|point| point.0));
        let ys = decades(self.points.iter().map(|point| point.1));
        let across = |x: f64| LEFT + share(x, xs) * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - share(y, ys) * (HEIGHT - TOP - BOTTOM);
        let _ =
            writeln!(svg, "<text x=\"{LEFT}\" y=\"18\" font-weight=\"bold\">{}</text>", self.title);
        for (decade, value) in (xs.0..=xs.1).map(|decade| (decade, 10_f64.powi(decade))) {
            let (x, foot) = (across(value), HEIGHT - BOTTOM);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {TOP}V{foot}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                foot + 14.0,
                power(decade)
            );
        }
        for (decade, value) in (ys.0..=ys.1).map(|decade| (decade, 10_f64.powi(decade))) {
            let (y, right) = (up(value), WIDTH - RIGHT);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                power(decade)
            );
        }
        let (middle, low) = ((WIDTH + LEFT - RIGHT) / 2.0, HEIGHT - 6.0);
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{}</text>",
            self.across
        );
        let line = self.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", across(x), up(y)));
        let line = line.collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"#0a6\" stroke-width=\"2\"/>"
        );
        for &(x, y) in &self.points {
            let (cx, cy) = (across(x), up(y));
            let _ = writeln!(
                svg,
                "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"#0a6\"/>\
                 <text x=\"{cx:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                cy - 7.0,
                human(y, "")
            );
        }
    }
}

/// Returns the powers of ten around the values; at least one decade.
fn decades(values: impl Iterator<Item = f64> + Clone) -> (i32, i32) {
    let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor() as i32;
    let high = values.fold(f64::MIN_POSITIVE, f64::max).log10().ceil() as i32;
    (low, high.max(low + 1))
}

/// Returns where a value lies between two powers of ten, 0 to 1.
fn share(value: f64, (low, high): (i32, i32)) -> f64 {
    (value.log10() - f64::from(low)) / f64::from(high - low)
}

fn power(decade: i32) -> String {
    match decade {
        -3..=4 => 10_f64.powi(decade).to_string(),
        _ => format!("1e{decade}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_between_their_decades() {
        let values = [3.0, 250.0, 1000.0];
        let ends = decades(values.into_iter());
        assert_eq!(ends, (0, 3));
        assert!((share(1000.0, ends) - 1.0).abs() < 1e-9);
        assert!(share(3.0, ends) > 0.15 && share(3.0, ends) < 0.17);
        assert_eq!(decades([10.0].into_iter()), (1, 2));
    }

    #[test]
    fn a_plot_holds_every_point_and_no_broken_number() {
        let points = vec![(1e6, 5.0), (1e7, 50.0), (5e7, 77.5)];
        let panel = Panel { title: "open, ms".to_owned(), across: "frames", points };
        let svg = svg(&[panel], 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains(">77.5<"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
