//! One scale for all rules: how often an app has to expect a detection at least as unusual.
//!
//! A score `s` stands for `r` such detections a month (30 days) of an app by `s = 100 − 10·r^a` with
//! `a = ln 10 / ln 12`, which is fixed by two of its points: 90 is once a month, 99 once a year. More than
//! twelve a month are 0; never is 100.

/// `ln 10 / ln 12`.
const EXPONENT: f64 = 0.926_628_408_029_329_7;

/// The score of what an app has to expect `monthly` times in 30 days, 0 to 100.
pub fn score(monthly: f64) -> f64 {
    if monthly.is_nan() {
        return 0.0;
    }
    (100.0 - 10.0 * monthly.max(0.0).powf(EXPONENT)).clamp(0.0, 100.0)
}

/// How often an app has to expect a detection with at least this score, in 30 days.
pub fn monthly(score: f64) -> f64 {
    ((100.0 - score.clamp(0.0, 100.0)) / 10.0).powf(1.0 / EXPONENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_is_once_a_month_and_ninety_nine_once_a_year() {
        assert!((score(1.0) - 90.0).abs() < 1e-9);
        assert!((score(1.0 / 12.0) - 99.0).abs() < 1e-9);
        assert_eq!(score(0.0), 100.0);
        assert!(score(12.5) < 1e-9);
    }

    #[test]
    fn a_frequency_is_found_again_from_its_score() {
        for frequency in [0.001, 0.083, 0.5, 1.0, 3.0, 11.9] {
            assert!((monthly(score(frequency)) - frequency).abs() < 1e-6 * frequency);
        }
    }
}
