//! What a job is seen as: its states, the verbs that each accepts, and the names of both.
//!
//! The tables are the field's, looked at through its monitor; when a job changes its state is decided in `drive`.

use block_common::qapi_enum;

qapi_enum! {
    /// What kind of job it is.
    pub enum JobType: "job type" {
        /// Writes an overlay's content into what lies below it.
        Commit = "commit",
        /// Copies into an overlay what lies below it.
        Stream = "stream",
        /// Copies a node, and follows its writes.
        Mirror = "mirror",
        /// Copies a node as it was when the job began.
        Backup = "backup",
        /// Makes an image.
        Create = "create",
        /// Changes the options of an image.
        Amend = "amend",
        /// Goes back to a snapshot of the whole machine.
        SnapshotLoad = "snapshot-load",
        /// Makes a snapshot of the whole machine.
        SnapshotSave = "snapshot-save",
        /// Deletes a snapshot of the whole machine.
        SnapshotDelete = "snapshot-delete",
    }
}

qapi_enum! {
    /// The state of a job.
    pub enum JobStatus: "job status" {
        /// Described, and not begun: its permissions are being taken.
        Created = "created",
        /// Its body runs.
        Running = "running",
        /// Its body waits, with no request in flight.
        Paused = "paused",
        /// Its body runs, and could end when it is told to complete.
        Ready = "ready",
        /// As paused, from ready.
        Standby = "standby",
        /// Its body is done; other jobs of its transaction are not.
        Waiting = "waiting",
        /// Ready to change the graph, as soon as it is told to finalize.
        Pending = "pending",
        /// It failed or was cancelled, and puts things back.
        Aborting = "aborting",
        /// It is over, and can be looked at until it is dismissed.
        Concluded = "concluded",
        /// It is gone.
        Null = "null",
    }
}

qapi_enum! {
    /// What can be asked of a job.
    pub enum JobVerb: "job verb" {
        /// End without having done its work, or (ready, and not by force) without the last step.
        #[doc(alias = "cancel")]
        Cancel = "cancel",
        /// Stop for now.
        Pause = "pause",
        /// Go on.
        Resume = "resume",
        /// Be this fast at most.
        SetSpeed = "set-speed",
        /// Come to an end, now that it is ready.
        #[doc(alias = "complete")]
        Complete = "complete",
        /// Change the graph.
        Finalize = "finalize",
        /// Be forgotten.
        Dismiss = "dismiss",
    }
}

impl JobType {
    /// Whether the job works on a block device: then it has events of its own beside those that all jobs have.
    pub const fn is_block(self) -> bool {
        matches!(self, Self::Commit | Self::Stream | Self::Mirror | Self::Backup)
    }
}

impl JobStatus {
    /// Whether a job may go from this state to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        use JobStatus::*;
        match self {
            Created => matches!(next, Running | Aborting | Null),
            Running => matches!(next, Paused | Ready | Waiting | Aborting),
            Paused => matches!(next, Running),
            Ready => matches!(next, Standby | Waiting | Aborting),
            Standby => matches!(next, Ready),
            Waiting => matches!(next, Pending | Aborting),
            Pending => matches!(next, Aborting | Concluded),
            Aborting => matches!(next, Concluded),
            Concluded => matches!(next, Null),
            Null => false,
        }
    }

    /// Whether the job has come to its end.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Concluded | Self::Null)
    }
}

impl JobVerb {
    /// Whether a job in `status` accepts the verb.
    pub const fn applies_to(self, status: JobStatus) -> bool {
        use JobStatus::*;
        match self {
            Self::Cancel => matches!(status, Created | Running | Paused | Ready | Standby | Waiting | Pending),
            Self::Pause | Self::Resume | Self::SetSpeed => {
                matches!(status, Created | Running | Paused | Ready | Standby)
            }
            Self::Complete => matches!(status, Ready | Standby),
            Self::Finalize => matches!(status, Pending),
            Self::Dismiss => matches!(status, Concluded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_common::QapiEnum;

    /// The verbs that a state accepts, in the order of their definition.
    fn check(status: JobStatus, verbs: &str, next: &str) {
        let accepted: Vec<_> =
            JobVerb::ALL.iter().filter(|verb| verb.applies_to(status)).map(|verb| verb.name()).collect();
        assert_eq!(accepted.join(" "), verbs, "{status}");
        let after: Vec<_> = JobStatus::ALL.iter().filter(|to| status.may_become(**to)).map(|to| to.name()).collect();
        assert_eq!(after.join(" "), next, "{status}");
    }

    /// What qemu-storage-daemon 10.0.2 accepts in each state that its monitor can show (all but created, waiting and aborting).
    #[test]
    fn states_and_verbs_are_the_fields() {
        let active = "cancel pause resume set-speed";
        check(JobStatus::Created, active, "running aborting null");
        check(JobStatus::Running, active, "paused ready waiting aborting");
        check(JobStatus::Paused, active, "running");
        check(JobStatus::Ready, &format!("{active} complete"), "standby waiting aborting");
        check(JobStatus::Standby, &format!("{active} complete"), "ready");
        check(JobStatus::Waiting, "cancel", "pending aborting");
        check(JobStatus::Pending, "cancel finalize", "aborting concluded");
        check(JobStatus::Aborting, "", "concluded");
        check(JobStatus::Concluded, "dismiss", "null");
        check(JobStatus::Null, "", "");
    }
}
