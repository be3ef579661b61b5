//! `Planner`: jobs that use the same weights at the same time.

use coresident::arena::EvictionOrder;
use coresident::device::{DeviceType, Name};
use coresident::residency::{Planner, PolicyName};
use loom::thread;

use crate::owner;

pub(crate) fn what_a_job_uses_is_noted_whatever_others_use() {
    let planner = Planner::new(Name::new(DeviceType::Cuda, 0).unwrap(), PolicyName::Known, None);
    let unet = planner.number("unet");
    let stages = ["unet".to_owned(), "vae".to_owned()];
    let other = thread::spawn({
        let planner = planner.clone();
        move || {
            let me = owner(1);
            let job = planner.begin(Some(&["unet".to_owned()]), &me).unwrap();
            planner.used(unet, 1, &me);
            drop(job);
        }
    });
    let me = owner(0);
    let job = planner.begin(Some(&stages), &me).unwrap();
    planner.used(unet, 1, &me);
    other.join().unwrap();
    // It is behind it, so that the other one is needed first.
    assert_eq!(planner.order(&stages), stages);
    drop(job);
}
