//! A load's summary as a table and as JSON under vLLM's names.

use std::fmt;

use serde_json::{Map, Value, json};

use super::stats::{Spread, Summary, Unanswered};

// === impl Summary ===

impl Summary {
    /// Tokens of prompts and answers.
    fn tokens(&self) -> u64 {
        self.input_tokens + self.output_tokens
    }

    fn spreads(&self) -> [(&'static str, Spread); 4] {
        [("ttft", self.ttft), ("tpot", self.tpot), ("itl", self.itl), ("e2el", self.e2el)]
    }

    /// The keys of vLLM's result files, and what was refused.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut put = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
        put("duration", json!(self.duration));
        put("completed", json!(self.completed));
        put("failed", json!(self.unanswered.failed));
        put("refused", json!(self.unanswered.refused));
        put("total_input_tokens", json!(self.input_tokens));
        put("total_output_tokens", json!(self.output_tokens));
        put("request_throughput", json!(self.rate(self.completed as f64)));
        put("request_goodput", json!(self.good.map(|good| self.rate(good as f64))));
        put("output_throughput", json!(self.rate(self.output_tokens as f64)));
        put("total_token_throughput", json!(self.rate(self.tokens() as f64)));
        for (name, Spread { mean, median, std, p99 }) in self.spreads() {
            for (kind, value) in [("mean", mean), ("median", median), ("std", std), ("p99", p99)] {
                put(&format!("{kind}_{name}_ms"), json!(value));
            }
        }
        keys
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { completed, duration, input_tokens, output_tokens, .. } = self;
        let Unanswered { failed, refused } = self.unanswered;
        write!(f, "requests    {completed} completed, {failed} failed, ")?;
        writeln!(f, "{refused} refused by 429, in {duration:.2} s")?;
        writeln!(f, "tokens      {input_tokens} of prompts, {output_tokens} of answers")?;
        writeln!(f, "throughput  {:.2} requests/s", self.rate(*completed as f64))?;
        if let Some(good) = self.good {
            writeln!(f, "goodput     {:.2} requests/s", self.rate(good as f64))?;
        }
        writeln!(f, "output      {:.1} tokens/s", self.rate(*output_tokens as f64))?;
        writeln!(f, "total       {:.1} tokens/s", self.rate(self.tokens() as f64))?;
        writeln!(f)?;
        write!(f, "{:>16}{:>10}{:>10}{:>10}", "mean ms", "median", "std", "p99")?;
        for (name, Spread { mean, median, std, p99 }) in self.spreads() {
            write!(f, "\n{name:6}{mean:10.2}{median:10.2}{std:10.2}{p99:10.2}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Summary;
    use crate::bench::stats::{Timing, Unanswered};

    #[test]
    fn keys_are_those_of_vllm() {
        let timing = Timing {
            prompt_tokens: 3,
            output_tokens: 2,
            ttft: Duration::from_millis(40),
            itl: vec![Duration::from_millis(10)],
            e2el: Duration::from_millis(50),
        };
        let unanswered = Unanswered { failed: 0, refused: 4 };
        let keys = Summary::new(&[timing], unanswered, Duration::from_millis(500), &[]).to_json();
        for (key, value) in [
            ("completed", 1.0),
            ("failed", 0.0),
            ("refused", 4.0),
            ("duration", 0.5),
            ("request_throughput", 2.0),
            ("output_throughput", 4.0),
            ("total_token_throughput", 10.0),
            ("mean_ttft_ms", 40.0),
            ("median_tpot_ms", 10.0),
            ("p99_itl_ms", 10.0),
            ("std_e2el_ms", 0.0),
        ] {
            assert_eq!(keys[key].as_f64(), Some(value), "{key}");
        }
        assert!(keys["request_goodput"].is_null());
        assert_eq!(keys.len(), 10 + 4 * 4);
    }
}
