//! Medians and quartiles, of few numbers.

/// The value below which the share `q` of `values` lies, between two of them where need be.
///
/// # Panics
/// When there are no values.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// `f` of the numbers that were measured together.
pub(crate) fn paired(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

/// By which factor two runs of one thing typically differ: three of four pairs differ by less. At least one.
pub(crate) fn spread(a: &[f64], b: &[f64]) -> f64 {
    quantile(&paired(a, b, |a, b| (a / b).max(b / a)), 0.75)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert_eq!(quantile(&[7.0], 0.75), 7.0);
    }

    /// Scenario: the machine is twice as slow in the second round. The ratios within the rounds do not notice.
    #[test]
    fn pairs_cancel_what_both_suffer() {
        let (ours, theirs) = ([10.0, 20.0, 11.0], [30.0, 60.0, 33.0]);
        assert_eq!(median(&paired(&ours, &theirs, |ours, theirs| theirs / ours)), 3.0);
    }

    #[test]
    fn the_spread_does_not_care_which_run_was_slower() {
        assert_eq!(spread(&[1.0, 2.0, 1.0, 2.0], &[2.0, 1.0, 2.0, 1.0]), 2.0);
        assert_eq!(spread(&[5.0, 6.0], &[5.0, 6.0]), 1.0);
    }
}
