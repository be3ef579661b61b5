//! For whom the calling thread is at work: what it does on the way to serve a request, such as evicting
//! others, is for that.

use std::cell::Cell;

use super::Label;

thread_local! {
    static ACTING: Cell<(u64, Label)> = const { Cell::new((0, Label::NOTHING)) };
}

/// Has the calling thread act for somebody, until it is dropped.
#[must_use]
pub struct Acting {
    before: (u64, Label),
}

impl Acting {
    /// In this job from now on; 0 is none in particular.
    pub fn in_job(job: u64) -> Self {
        let (_, component) = ACTING.get();
        Self { before: ACTING.replace((job, component)) }
    }

    /// For this component from now on, in the same job.
    pub fn on_behalf_of(component: Label) -> Self {
        let (job, _) = ACTING.get();
        Self { before: ACTING.replace((job, component)) }
    }

    /// In this job and for this component from now on.
    pub fn of(job: u64, component: Label) -> Self {
        Self { before: ACTING.replace((job, component)) }
    }

    /// In which job the thread acts, and for which component.
    #[must_use]
    pub fn now() -> (u64, Label) {
        ACTING.get()
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        ACTING.set(self.before);
    }
}
