//! What other processes and people do in a run's folder while a stage would write there.

use anyhow::Result;

use super::Run;
use selfrepair_core::progress;
use selfrepair_store::locks::ReportLock;
use selfrepair_store::run_folder::{STAGES, Stage};

impl Run {
    /// `pipeline report` may be writing there at the same time.
    pub(super) fn lock_of_report(&self, stage: Stage) -> Result<Option<ReportLock>> {
        (stage == Stage::Report).then(|| ReportLock::alone(self.folder.root())).transpose()
    }

    /// # Errors
    /// If files that are not the run's lie where a stage would write that is cleared or has to run. Asked before anything
    /// is removed. Such files beside a finished stage's are only named: readers leave them out.
    pub(super) fn refuse_foreign(&self, last: Stage, fresh: bool) -> Result<()> {
        for stage in STAGES {
            let (fingerprint, folders) = (self.fingerprint(stage), self.folders(stage));
            let runs = stage <= last && (fresh || !self.folder.is_current(stage, fingerprint));
            if runs || self.folder.is_stale(stage, fingerprint) {
                self.folder.refuse_foreign(stage, &folders)?;
            } else {
                for path in self.folder.foreign(stage, &folders)? {
                    progress::line(
                        "warning",
                        &format!("{} was not written by this run and is not read", path.display()),
                    );
                }
            }
        }
        Ok(())
    }
}
