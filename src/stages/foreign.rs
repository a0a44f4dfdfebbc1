//! Files in a run folder that this run did not write, and the lock of the report.

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
    /// If foreign files lie in the folder of a stage that has to run. Called before anything is removed. Foreign files in
    /// the folder of a finished stage are only reported: readers skip them.
    pub(super) fn refuse_foreign(&self, last: Stage, fresh: bool) -> Result<()> {
        for stage in STAGES {
            let folders = self.folders(stage);
            if fresh || stage <= last && !self.is_current(stage)? {
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
