//! Advice in words, with its evidence.

use std::fmt::{self, Display};

use super::{Advice, ENOUGH, Verdict};

impl Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares = &self.shares;
        match self.verdict {
            Verdict::NotEnough => {
                write!(
                    f,
                    "Not enough streams to say which side is slow: {} in the last 15 minutes, and it takes {ENOUGH}.",
                    self.streams
                )
            }
            // Without the loads a long wait for prefill's response may have another reason.
            Verdict::Prefill if !self.has_loads => {
                write!(
                    f,
                    "Prefill-bound, or slow in the transfer: {} of TTFT waits for prefill's response; {}. With load_poll_interval_secs \
                     the loads of the workers tell which, and how busy decode is.",
                    percent(shares.prefill),
                    self.prefill(),
                )
            }
            Verdict::Prefill => {
                write!(
                    f,
                    "Prefill-bound: {} of TTFT waits for prefill",
                    percent(shares.prefill)
                )?;
                write!(
                    f,
                    ", which is {} busy; {}",
                    percent(self.prefill_busy),
                    self.decode()
                )?;
                self.balance(f, "more prefill workers would shorten it")
            }
            Verdict::Decode => {
                write!(
                    f,
                    "Decode-bound: {} of TTFT waits for decode",
                    percent(shares.decode)
                )?;
                let busy = self.decode_busy.unwrap_or(1.0);
                write!(f, ", which is {} busy; {}", percent(busy), self.prefill())?;
                self.balance(f, "more decode workers would shorten it")
            }
            Verdict::Transfer => {
                write!(
                    f,
                    "Transfer-bound: {} of TTFT is the transfer of the KV cache; {}, {}. More workers would hardly shorten it: \
                     look at the network between prefill and decode.",
                    percent(shares.transfer),
                    self.prefill(),
                    self.decode(),
                )
            }
            Verdict::Both => {
                write!(
                    f,
                    "Both sides are full: {}, {}. More workers of both roles would shorten the wait.",
                    self.prefill(),
                    self.decode()
                )
            }
            Verdict::Failures => {
                write!(
                    f,
                    "Failures first: {} of TTFT goes to attempts that failed. The pairs and the errors show where.",
                    percent(shares.retry)
                )
            }
            Verdict::Clients => {
                write!(
                    f,
                    "Slow senders: {} of TTFT is clients sending their request; no worker shortens it.",
                    percent(shares.read)
                )
            }
            Verdict::Balanced => {
                write!(f, "No bottleneck: {}, {}.", self.prefill(), self.decode())
            }
        }
    }
}

impl Advice {
    fn prefill(&self) -> String {
        format!("prefill is {} busy", percent(self.prefill_busy))
    }

    fn decode(&self) -> String {
        match self.decode_busy {
            Some(busy) => format!("decode is {} busy", percent(busy)),
            None => "how busy decode is cannot be seen without its load".to_owned(),
        }
    }

    fn balance(&self, f: &mut fmt::Formatter<'_>, otherwise: &str) -> fmt::Result {
        match self.balance {
            Some((prefills, decodes)) => {
                write!(f, "; {prefills}P:{decodes}D would balance this load.")
            }
            None => write!(f, "; {otherwise}."),
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.0}\u{a0}%", part * 100.0)
}
