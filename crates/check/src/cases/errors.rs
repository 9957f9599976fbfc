pub(crate) const CASES: &[crate::case::Rule] = &[];
