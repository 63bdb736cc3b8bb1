//! What goes wrong, and when.

use super::world::{Event, World};

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// An executor's process ends; another one comes after a while.
    Kill,
    /// An executor stands still, mostly for longer than its lease, and goes on as if nothing had been.
    Pause,
    /// An executor is asked to leave.
    Drain,
    /// A stream breaks, and is opened again.
    Break,
    /// The leader's process ends.
    KillLeader,
    /// The leader is cut off from the others, and does not know it yet.
    Depose,
    /// Somebody stops a run, and starts it again.
    Cancel,
    /// Nothing more goes wrong.
    Over,
}

const KINDS: [Fault; 11] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Pause,
    Fault::Pause,
    Fault::Pause,
    Fault::Drain,
    Fault::Break,
    Fault::Break,
    Fault::KillLeader,
    Fault::Depose,
    Fault::Cancel,
];

impl World {
    pub(super) fn schedule_faults(&mut self) {
        self.trace.faults_go_on = true;
        let faults = self.random.between(1, 8);
        let mut at = 0;
        for _ in 0..faults {
            at += match self.random.percent(70) {
                true => self.random.between(1, 300),
                false => self.random.between(1, 4_000),
            };
            let kind = self.random.pick(&KINDS).expect("there are some");
            self.after(at, Event::Fault(kind));
        }
        self.after(at + 1, Event::Fault(Fault::Over));
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        let processes: Vec<usize> = (0..self.processes.len()).collect();
        // Rather one that has something to lose.
        let busy: Vec<usize> = (processes.iter().copied())
            .filter(|process| !self.processes[*process].tasks.is_empty())
            .collect();
        let process = self.random.pick(&busy).or_else(|| self.random.pick(&processes));
        let process = process.expect("there is one");
        let leader = self.leaders.len().saturating_sub(1);
        match fault {
            Fault::Kill => self.kill(process),
            Fault::Pause => {
                let pause = match self.random.percent(25) {
                    true => self.random.between(10, 3_000),
                    false => self.random.between(3_000, 12_000),
                };
                if self.processes[process].is_alive {
                    self.processes[process].paused_until = self.now + pause;
                }
            }
            Fault::Drain => self.drain(process),
            Fault::Break => {
                if let Some(stream) = self.processes[process].stream {
                    self.break_stream(stream);
                }
            }
            Fault::KillLeader if !self.leaders.is_empty() => self.lose_leader(leader),
            Fault::Depose if !self.leaders.is_empty() => {
                self.leaders[leader].is_deposed = true;
                self.soon(0, 5_000, Event::Broken { leader });
                self.soon(100, 1_500, Event::Elect);
            }
            Fault::Cancel if !self.leaders.is_empty() => {
                let run = usize::from(self.plans.len() > 1 && self.random.percent(50));
                self.cancel(leader, run);
            }
            Fault::KillLeader | Fault::Depose | Fault::Cancel => {}
            Fault::Over => self.trace.faults_go_on = false,
        }
    }
}
