//! Executors that an admin wants to leave: they get nothing more, end what they have, serve what they keep, and are
//! told when nothing is left. That they are to leave is a fact in the ledger, unlike that of a process which was asked to end
//! (SIGTERM), which says so in its heartbeats.

use std::collections::BTreeSet;

use weir_plan::{Holder, StageKind};
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{Leave, Stop};

use super::Pool;

/// A process of an executor that is to leave and has nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Idle {
    executor: String,
    boot_id: String,
}

impl Pool {
    /// Whether some executor that is here is to leave, and has not been told yet that it can.
    pub(in super::super) fn set_to_leave(&self, names: &BTreeSet<String>) -> bool {
        let mut state = self.state();
        if state.to_leave != *names {
            state.to_leave.clone_from(names);
            for (name, executor) in &mut state.executors {
                executor.is_to_leave = names.contains(name);
            }
            self.changed.notify_waiters();
        }
        state.executors.values().any(|executor| executor.is_to_leave && !executor.may_leave)
    }

    /// Ends what can go on elsewhere. The processes that are to leave and have nothing to do any more: what they have
    /// done is in the ledger, which is to be asked afterwards who keeps something that is needed.
    pub(in super::super) fn idle_to_leave(&self) -> Vec<Idle> {
        let mut state = self.state();
        let state = &mut *state;
        for assigned in state.tasks.values_mut() {
            let Some(executor) = state.executors.get(&assigned.executor) else { continue };
            // One that computes something as a whole would begin again elsewhere: it goes on to its end.
            let can_go_on_elsewhere =
                matches!(assigned.task.stage.kind, StageKind::Streaming { .. });
            if executor.is_to_leave && can_go_on_elsewhere && !assigned.is_stopping {
                assigned.is_stopping = true;
                executor.send(Message::Stop(Stop { task: assigned.assign.task.clone() }));
            }
        }
        let has_task =
            |name: &String| state.tasks.values().any(|assigned| assigned.executor == *name);
        (state.executors.iter())
            .filter(|(_, executor)| executor.is_to_leave && executor.busy() == 0)
            .filter(|(name, _)| !has_task(name))
            .map(|(name, executor)| (name.clone(), executor.hello.boot_id.clone()))
            .map(|(executor, boot_id)| Idle { executor, boot_id })
            .collect()
    }

    /// Sends those away that had nothing left to do. `needed`: who keeps rows that are still to be read.
    pub(in super::super) fn let_leave(&self, idle: &[Idle], needed: &BTreeSet<Holder>) {
        let mut state = self.state();
        for Idle { executor: name, boot_id } in idle {
            let is_needed = (needed.iter())
                .any(|holder| holder.executor == *name && holder.boot_id == *boot_id);
            let Some(executor) = state.executors.get_mut(name) else { continue };
            let is_another = executor.hello.boot_id != *boot_id;
            if is_needed || is_another || !executor.is_to_leave || executor.may_leave {
                continue;
            }
            if executor.stream.is_some() {
                tracing::info!(executor = name, "executor may leave");
                executor.may_leave = true;
                executor.send(Message::Leave(Leave {}));
            }
        }
    }
}
