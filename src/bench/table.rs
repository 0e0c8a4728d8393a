//! Text in columns: the first is left-aligned, the others, which are numbers, right-aligned.

/// Formats rows as lines. The first row is the head; a shorter row is filled up with empty cells.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &'_ Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column| {
        let widths = rows.iter().map(|row| cell(row, column).chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, width) in widths.iter().enumerate() {
            let text = cell(row, column);
            match column {
                0 => line.push_str(&format!("{text:<width$}")),
                _ => line.push_str(&format!("  {text:>width$}")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
        if index == 0 {
            let all = widths.iter().sum::<usize>() + 2 * count.saturating_sub(1);
            out.push_str(&"-".repeat(all));
            out.push('\n');
        }
    }
    out
}

/// Formats a number with about three significant digits and without an exponent.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.1 => format!("{value:.4}"),
        small if small < 1.0 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => grouped(value),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_short_rows_end_early() {
        let rows = [
            vec!["load", "p50", "p99"],
            vec!["a longer one", "1", "1,000.5"],
            vec!["é"],
        ]
        .map(|row| row.into_iter().map(str::to_owned).collect());
        let text = columns(&rows);
        let expected = "\
load          p50      p99
--------------------------
a longer one    1  1,000.5
é
";
        assert_eq!(text, expected);
    }

    #[test]
    fn numbers_have_three_digits_and_commas() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (0.5, "0.500"),
            (9.876, "9.88"),
            (12.34, "12.3"),
            (999.6, "1,000"),
            (1234567.0, "1,234,567"),
            (-1500.0, "-1,500"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
