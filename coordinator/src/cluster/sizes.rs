//! How large may be what clients send and the ledger keeps: it is in the memory of every coordinator, and in every snapshot.
//! What is larger is refused, with what is to be done instead. (Names of pipelines and nodes are bounded where files are
//! read.)

use std::collections::BTreeMap;

use serde_json::Value;

use crate::EngineError;

/// Of the parameters of a run or backfill, as JSON, with those that the pipeline gives a value itself.
const LONGEST_PARAMS: usize = 64 << 10;

/// `15m`; leading zeros are no reason for more.
const LONGEST_STEP: usize = 32;

/// The ledger keeps them with every run.
pub(super) fn check_params(params: &BTreeMap<String, Value>) -> Result<(), EngineError> {
    let bytes = |(name, value): (&String, &Value)| name.len() + value.to_string().len();
    let all: usize = params.iter().map(bytes).sum();
    if all <= LONGEST_PARAMS {
        return Ok(());
    }
    let longest =
        params.iter().max_by_key(|param| bytes(*param)).map_or("", |(name, _)| name.as_str());
    Err(EngineError::Invalid(format!(
        "the parameters have {all} bytes, of which `{longest}` has most; the ledger keeps them with every run, and \
         takes {LONGEST_PARAMS}. Put such a value into a file that the pipeline reads"
    )))
}

/// Of a backfill's windows.
pub(super) fn check_step(step: &str) -> Result<(), EngineError> {
    match step.len() > LONGEST_STEP {
        true => Err(EngineError::Invalid(format!(
            "the step has {} bytes: write it like `15m`, `1h`, `1d`, `1w` or `1mo`",
            step.len()
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_weighed_together_and_the_largest_is_named() {
        let params = |bytes: usize| {
            let texts = [("a", 10), ("b", bytes)];
            let params = texts.map(|(name, bytes)| (name.to_owned(), "x".repeat(bytes).into()));
            BTreeMap::from(params)
        };
        // Two names, four quotation marks.
        let most = LONGEST_PARAMS - 10 - 6;
        assert!(check_params(&params(most)).is_ok());
        let error = check_params(&params(most + 1)).expect_err("too large").to_string();
        assert!(error.contains("65537 bytes, of which `b`"), "{error}");
    }

    #[test]
    fn a_step_of_zeros_is_refused() {
        assert!(check_step("15m").is_ok());
        assert!(check_step(&format!("{}1d", "0".repeat(1 << 20))).is_err());
    }
}
