//! The job core with a toy job: states, verbs in QEMU's words, acts in order on every path.

mod common;

use block_backend_io::{Upcalls, UpcallsOut, upcalls};
use block_copy::{JobControl, RunError};
use block_gs::GlobalState;
use block_io::{IoThread, IoThreadHandle, IoThreadOptions};
use block_jobs::{
    Cancel, Completion, Job, JobContext, JobError, JobEvent, JobGroup, JobOptions, JobRef, JobRegistry, JobResult,
    JobSetup, JobStatus, JobType, Leftover, PreparedJob, Start, StartedJob,
};
use common::{Bed, run};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

type BodyFuture = Pin<Box<dyn Future<Output = Result<u32, RunError>> + Send>>;
type Ask = Upcalls<(), bool>;
type Body = Box<dyn FnOnce(JobControl, Ask) -> BodyFuture + Send>;
type Log = Rc<RefCell<Vec<String>>>;

/// A job that does nothing but tell which acts it came by.
struct Toy {
    log: Log,
    home: Option<IoThreadHandle>,
    fails_to_begin: bool,
    fails_to_prepare: bool,
    body: Body,
}

struct Started {
    log: Log,
    questions: UpcallsOut<(), bool>,
    fails_to_prepare: bool,
}

struct Prepared(Log);
struct Left(Log);

fn tell(log: &Log, act: impl Into<String>) {
    log.borrow_mut().push(act.into());
}

impl Toy {
    fn new<F>(body: impl FnOnce(JobControl, Ask) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<u32, RunError>> + Send + 'static,
    {
        let body: Body = Box::new(move |control, ask| Box::pin(body(control, ask)));
        Self { log: Log::default(), home: None, fails_to_begin: false, fails_to_prepare: false, body }
    }

    /// Ends at once.
    fn short() -> Self {
        Self::new(|_, _| async { Ok(7) })
    }

    /// Runs until it is cancelled, and looks at its pause point all the time.
    fn endless() -> Self {
        Self::new(|mut control, _| async move {
            loop {
                control.pause_point().await?;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
    }

    /// Is ready at once, and looks at its pause point until it is told to complete.
    fn with_ready() -> Self {
        Self::new(|mut control, ask| async move {
            let mut answer = Box::pin(async move { ask.ask(()).await });
            loop {
                control.pause_point().await?;
                tokio::select! {
                    answer = &mut answer => return Ok(u32::from(answer == Some(true))),
                    () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
                }
            }
        })
    }
}

impl Job for Toy {
    const TYPE: JobType = JobType::Create;
    type Started = Started;

    async fn pre_run(self, setup: JobSetup) -> JobResult<Start<Started>> {
        tell(&self.log, "pre_run");
        if self.fails_to_begin {
            return Err(JobError::Options("no".into()));
        }
        let (ask, questions) = upcalls(1);
        let home = self.home.unwrap_or_else(|| setup.gs().main_io());
        let body = self.body;
        let job = Started { log: self.log, questions, fails_to_prepare: self.fails_to_prepare };
        Ok(Start::new(job, &home, move |control| body(control, ask)))
    }
}

impl StartedJob for Started {
    type Report = u32;
    type Prepared = Prepared;
    type Left = Left;

    async fn serve(&mut self, context: &JobContext) {
        while let Some(((), answer)) = self.questions.next().await {
            context.ready();
            let _ = answer.send(context.completion().await == Completion::Complete);
        }
    }

    async fn prepare(self, _gs: &GlobalState, report: u32) -> Result<Prepared, (Self, JobError)> {
        tell(&self.log, format!("prepare {report}"));
        if self.fails_to_prepare {
            return Err((self, JobError::Options("not prepared".into())));
        }
        Ok(Prepared(self.log))
    }

    async fn abort(self, _gs: &GlobalState) -> Left {
        tell(&self.log, "abort");
        Left(self.log)
    }
}

impl PreparedJob for Prepared {
    type Left = Left;

    fn commit(self, _gs: &GlobalState) -> Left {
        tell(&self.0, "commit");
        Left(self.0)
    }

    async fn abort(self, _gs: &GlobalState) -> Left {
        tell(&self.0, "take back");
        Left(self.0)
    }
}

impl Leftover for Left {
    async fn clean(self, _gs: &GlobalState) {
        tell(&self.0, "clean");
    }
}

fn acts(log: &Log) -> String {
    log.borrow().join(", ")
}

/// Run `toy` to its end without anybody doing anything; returns its error, statuses and acts.
async fn alone(bed: &Bed, options: JobOptions, toy: Toy) -> (Option<String>, String, String) {
    let (log, id) = (toy.log.clone(), options.id.clone());
    let job = JobRegistry::start(&bed.gs, options, toy).await.expect("it starts");
    let ended = job.ended().await;
    bed.until(|| bed.registry().job(&id).is_err()).await;
    (ended.err().map(|error| error.to_string()), bed.statuses(&id), acts(&log))
}

fn refused(result: JobResult<()>) -> String {
    result.expect_err("it is refused").to_string()
}

#[test]
fn a_job_goes_through_its_acts_and_states() {
    run(|bed| async move {
        let (error, statuses, log) = alone(&bed, JobOptions::new("toy"), Toy::short()).await;
        assert_eq!(error, None);
        assert_eq!(statuses, "created running waiting pending concluded null");
        assert_eq!(log, "pre_run, prepare 7, commit, clean");
    });
}

#[test]
fn a_manual_job_waits_to_be_finalized_and_dismissed() {
    run(|bed| async move {
        let toy = Toy::short();
        let log = toy.log.clone();
        let job = JobRegistry::start(&bed.gs, JobOptions::manual("toy"), toy).await.expect("it starts");
        job.reached(|status| status == JobStatus::Pending).await;
        bed.sleep_ms(5).await;
        assert_eq!((job.status(), acts(&log)), (JobStatus::Pending, "pre_run".into()));
        assert!(bed.events().iter().any(|event| matches!(event, JobEvent::Pending { id, .. } if id == "toy")));
        for (result, verb) in [(job.pause(), "pause"), (job.complete(), "complete"), (job.set_speed(1), "set-speed")] {
            assert_eq!(refused(result), format!("Job 'toy' in state 'pending' cannot accept command verb '{verb}'"));
        }
        assert_eq!(refused(job.resume()), "Can't resume a job that was not paused");
        job.finalize().expect("it is pending");
        job.ended().await.expect("a good end");
        assert_eq!(acts(&log), "pre_run, prepare 7, commit, clean");
        let over = "Job 'toy' in state 'concluded' cannot accept command verb";
        assert_eq!(refused(job.finalize()), format!("{over} 'finalize'"));
        assert_eq!(refused(job.cancel(Cancel::Force)), format!("{over} 'cancel'"));
        assert_eq!(refused(job.complete()), format!("{over} 'complete'"));
        assert_eq!(refused(job.pause()), format!("{over} 'pause'"));
        assert_eq!(bed.registry().query().len(), 1);
        bed.registry().dismiss("toy").expect("it is over");
        assert_eq!(refused(bed.registry().dismiss("toy")), "Job not found");
        assert_eq!((job.status(), bed.registry().query().len()), (JobStatus::Null, 0));
    });
}

#[test]
fn pausing_takes_effect_at_a_pause_point() {
    run(|bed| async move {
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), Toy::endless()).await.expect("it starts");
        let running = "Job 'toy' in state 'running' cannot accept command verb";
        assert_eq!(refused(job.complete()), format!("{running} 'complete'"));
        assert_eq!(refused(job.finalize()), format!("{running} 'finalize'"));
        assert_eq!(refused(bed.registry().dismiss("toy")), format!("{running} 'dismiss'"));
        assert_eq!(refused(job.resume()), "Can't resume a job that was not paused");
        job.pause().expect("it runs");
        assert_eq!((job.status(), job.info().is_pausing), (JobStatus::Running, true));
        assert_eq!(refused(job.pause()), "Job is already paused");
        job.reached(|status| status == JobStatus::Paused).await;
        assert_eq!(refused(job.pause()), "Job is already paused");
        assert_eq!(refused(job.complete()), "Job 'toy' in state 'paused' cannot accept command verb 'complete'");
        assert_eq!(refused(job.cancel(Cancel::Soft)), "The block job for device 'toy' is currently paused");
        job.set_speed(5).expect("it is paused");
        assert_eq!(job.info().speed, 5);
        job.resume().expect("it is paused");
        job.reached(|status| status == JobStatus::Running).await;
        job.pause().expect("it runs");
        job.reached(|status| status == JobStatus::Paused).await;
        job.cancel(Cancel::Force).expect("it is paused");
        assert_eq!(job.ended().await.expect_err("cancelled").to_string(), "Operation canceled");
        let expected = "created running paused running paused running aborting concluded null";
        assert_eq!(bed.statuses("toy"), expected);
    });
}

#[test]
fn a_ready_job_completes_once_however_often_it_is_told() {
    run(|bed| async move {
        let toy = Toy::with_ready();
        let log = toy.log.clone();
        let job = JobRegistry::start(&bed.gs, JobOptions::manual("toy"), toy).await.expect("it starts");
        job.reached(|status| status == JobStatus::Ready).await;
        assert!(bed.events().iter().any(|event| matches!(event, JobEvent::Ready(info) if info.id == "toy")));
        job.pause().expect("it is ready");
        job.reached(|status| status == JobStatus::Standby).await;
        job.complete().expect("it is ready");
        job.complete().expect("twice is once");
        bed.sleep_ms(5).await;
        assert_eq!(job.status(), JobStatus::Standby);
        job.resume().expect("it is paused");
        job.reached(|status| status == JobStatus::Pending).await;
        assert_eq!(refused(job.complete()), "Job 'toy' in state 'pending' cannot accept command verb 'complete'");
        job.finalize().expect("it is pending");
        job.ended().await.expect("a good end");
        assert_eq!(acts(&log), "pre_run, prepare 1, commit, clean");
    });
}

#[test]
fn a_soft_cancel_of_a_ready_job_is_a_good_end() {
    run(|bed| async move {
        let toy = Toy::with_ready();
        let log = toy.log.clone();
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), toy).await.expect("it starts");
        job.reached(|status| status == JobStatus::Ready).await;
        job.cancel(Cancel::Soft).expect("it is ready");
        job.complete().expect("too late, and allowed");
        job.ended().await.expect("a good end");
        assert_eq!(acts(&log), "pre_run, prepare 0, commit, clean");
        assert!(bed.events().iter().any(|event| matches!(event, JobEvent::Completed(info) if info.error.is_none())));
        // One that is not ready is cancelled for good.
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy2"), Toy::endless()).await.expect("it starts");
        job.cancel(Cancel::Soft).expect("it runs");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        assert_eq!(bed.statuses("toy2"), "created running aborting concluded null");
    });
}

#[test]
fn job_4_a_cancel_counts_until_the_graph_changes() {
    run(|bed| async move {
        // Created: the permissions wait for the ticket.
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let blocker = bed.gs.main().spawn(bed.gs.mutate(|_| async move { drop(released.await) }));
        let toy = Toy::short();
        let log = toy.log.clone();
        let starting = bed.gs.main().spawn(JobRegistry::start(&bed.gs, JobOptions::new("toy"), toy));
        bed.sleep_ms(2).await;
        let job = bed.registry().job("toy").expect("it is listed at once");
        assert_eq!((job.status(), acts(&log)), (JobStatus::Created, String::new()));
        job.cancel(Cancel::Force).expect("it is created");
        release.send(()).expect("the mutation waits");
        blocker.join().await;
        starting.join().await.expect("it began");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        assert_eq!(
            (bed.statuses("toy"), acts(&log)),
            ("created aborting concluded null".into(), "pre_run, abort, clean".into())
        );

        // Ready.
        let toy = Toy::with_ready();
        let log = toy.log.clone();
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), toy).await.expect("it starts");
        job.reached(|status| status == JobStatus::Ready).await;
        job.cancel(Cancel::Force).expect("it is ready");
        assert_eq!(refused(job.complete()), "The active block job 'toy' cannot be completed");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        assert_eq!(acts(&log), "pre_run, abort, clean");
        assert!(bed.events().iter().any(|event| matches!(event, JobEvent::Cancelled(_))));

        // Pending.
        let toy = Toy::short();
        let log = toy.log.clone();
        let job = JobRegistry::start(&bed.gs, JobOptions::manual("toy"), toy).await.expect("it starts");
        job.reached(|status| status == JobStatus::Pending).await;
        job.cancel(Cancel::Force).expect("it is pending");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        assert_eq!(acts(&log), "pre_run, abort, clean");
        assert_eq!(bed.statuses("toy"), "created running waiting pending aborting concluded");
        bed.registry().dismiss("toy").expect("it is over");
    });
}

#[test]
fn job_4_a_job_that_cannot_begin_never_was() {
    run(|bed| async move {
        let toy = Toy { fails_to_begin: true, ..Toy::short() };
        let log = toy.log.clone();
        let error = JobRegistry::start(&bed.gs, JobOptions::manual("toy"), toy).await.expect_err("it cannot begin");
        assert_eq!(error.to_string(), "no");
        assert_eq!((bed.statuses("toy"), acts(&log)), ("created null".into(), "pre_run".into()));
        assert!(bed.registry().query().is_empty());
    });
}

#[test]
fn job_4_a_failure_in_any_act_aborts_and_cleans() {
    run(|bed| async move {
        let failed = Toy::new(|_, _| async { Err(RunError::Other("broken".into())) });
        let (error, statuses, log) = alone(&bed, JobOptions::new("toy"), failed).await;
        assert_eq!(error.as_deref(), Some("broken"));
        assert_eq!((&*statuses, &*log), ("created running aborting concluded null", "pre_run, abort, clean"));

        let unprepared = Toy { fails_to_prepare: true, ..Toy::short() };
        let (error, statuses, log) = alone(&bed, JobOptions::new("toy"), unprepared).await;
        assert_eq!(error.as_deref(), Some("not prepared"));
        assert_eq!(statuses, "created running waiting pending aborting concluded null");
        assert_eq!(log, "pre_run, prepare 7, abort, clean");

        let panics = Toy::new(|mut control, _| async move {
            control.pause_point().await?;
            panic!("in a body")
        });
        let (error, statuses, log) = alone(&bed, JobOptions::new("toy"), panics).await;
        assert!(error.expect("an error").contains("panicked"));
        assert_eq!((&*statuses, &*log), ("created running aborting concluded null", "pre_run, abort, clean"));
    });
}

#[test]
fn job_4_a_body_whose_thread_ends_is_aborted() {
    run(|bed| async move {
        for paused in [false, true] {
            let thread = IoThread::spawn(IoThreadOptions::named("home")).expect("an I/O thread");
            let toy = Toy { home: Some(thread.handle()), ..Toy::endless() };
            let log = toy.log.clone();
            let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), toy).await.expect("it starts");
            if paused {
                job.pause().expect("it runs");
                job.reached(|status| status == JobStatus::Paused).await;
            }
            drop(thread);
            assert!(matches!(*job.ended().await.expect_err("no body"), JobError::Lost));
            assert_eq!(acts(&log), "pre_run, abort, clean");
        }
        // A thread that is gone already.
        let thread = IoThread::spawn(IoThreadOptions::named("home")).expect("an I/O thread");
        let home = Some(thread.handle());
        drop(thread);
        let (error, _, log) = alone(&bed, JobOptions::new("toy"), Toy { home, ..Toy::short() }).await;
        assert!(error.is_some());
        assert_eq!(log, "pre_run, abort, clean");
    });
}

#[test]
fn ids_are_checked_before_anything_happens() {
    run(|bed| async move {
        for id in ["", "1x", "a b"] {
            let error = JobRegistry::start(&bed.gs, JobOptions::new(id), Toy::short()).await.expect_err("no id");
            assert_eq!(error.to_string(), format!("Invalid job ID '{id}'"));
        }
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), Toy::endless()).await.expect("it starts");
        let toy = Toy::short();
        let log = toy.log.clone();
        let error = JobRegistry::start(&bed.gs, JobOptions::new("toy"), toy).await.expect_err("it is in use");
        assert_eq!((error.to_string(), acts(&log)), ("Job ID 'toy' already in use".into(), String::new()));
        assert_eq!(refused(bed.registry().job("other").map(drop)), "Job not found");
        job.cancel(Cancel::Force).expect("it runs");
        assert!(job.ended().await.is_err());
    });
}

#[test]
fn verbs_need_no_ticket() {
    run(|bed| async move {
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), Toy::endless()).await.expect("it starts");
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let blocker = bed.gs.main().spawn(bed.gs.mutate(|_| async move { drop(released.await) }));
        job.pause().expect("it runs");
        job.reached(|status| status == JobStatus::Paused).await;
        job.resume().expect("it is paused");
        job.cancel(Cancel::Force).expect("it runs");
        job.reached(|status| status == JobStatus::Aborting).await;
        bed.sleep_ms(5).await;
        assert_eq!(job.status(), JobStatus::Aborting);
        release.send(()).expect("the mutation waits");
        blocker.join().await;
        assert!(job.ended().await.is_err());
    });
}

#[test]
fn close_1_closing_everything_ends_every_job() {
    run(|bed| async move {
        for id in ["a", "b", "c"] {
            JobRegistry::start(&bed.gs, JobOptions::manual(id), Toy::endless()).await.expect("it starts");
        }
        bed.registry().job("b").expect("b").pause().expect("it runs");
        JobRegistry::start(&bed.gs, JobOptions::manual("d"), Toy::short()).await.expect("it starts");
        bed.registry().cancel_all().await;
        assert!(bed.registry().query().is_empty());
    });
}

#[test]
fn progress_is_seen_while_the_body_runs() {
    run(|bed| async move {
        let toy = Toy::new(|mut control, _| async move {
            control.extend(10);
            control.advance(3);
            loop {
                control.pause_point().await?;
                control.until_cancelled(std::future::pending::<()>()).await?;
            }
        });
        let job = JobRegistry::start(&bed.gs, JobOptions::new("toy"), toy).await.expect("it starts");
        bed.until(|| job.info().progress.current == 3).await;
        let info = job.info();
        assert_eq!((info.progress.total, info.job_type, info.speed), (10, JobType::Create, 0));
        assert!(info.auto_dismiss && info.auto_finalize && info.error.is_none());
        job.cancel(Cancel::Force).expect("it runs");
        assert!(job.ended().await.is_err());
    });
}

/// Start `toys` as one group, called `toy0` and so on.
async fn together(bed: &Bed, toys: Vec<Toy>, options: fn(String) -> JobOptions) -> Vec<JobRef> {
    let group = JobGroup::new();
    let mut jobs = Vec::new();
    for (at, toy) in toys.into_iter().enumerate() {
        jobs.extend(JobRegistry::start_in(&bed.gs, options(format!("toy{at}")), toy, &group).await);
    }
    group.complete();
    jobs
}

/// Toys with one log, each with a body of its own.
fn with_log(log: &Log, bodies: Vec<Toy>) -> Vec<Toy> {
    bodies.into_iter().map(|toy| Toy { log: log.clone(), ..toy }).collect()
}

#[test]
fn jobs_of_a_group_are_final_together() {
    run(|bed| async move {
        let log = Log::default();
        let slow = Toy::new(|_, _| async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Ok(1)
        });
        let jobs = together(&bed, with_log(&log, vec![Toy::short(), slow, Toy::short()]), JobOptions::new).await;
        for job in &jobs {
            job.ended().await.expect("a good end");
        }
        let begun = "pre_run, pre_run, pre_run, prepare 7, prepare 1, prepare 7, ";
        bed.until(|| log.borrow().len() == 12).await;
        assert!(acts(&log).starts_with(begun), "{}", acts(&log));
        let last: Vec<_> = log.borrow()[6..].to_vec();
        assert_eq!(last.iter().filter(|act| *act == "commit").count(), 3);
        assert_eq!(last.iter().filter(|act| *act == "clean").count(), 3);
        assert_eq!(bed.statuses("toy0"), "created running waiting pending concluded null");
    });
}

#[test]
fn job_4_one_that_fails_at_any_act_takes_its_group_along() {
    for place in 0..3 {
        for act in ["begin", "body", "prepare"] {
            run(|bed| async move {
                let log = Log::default();
                let mut toys = vec![Toy::short(), Toy::short(), Toy::short()];
                toys[place] = match act {
                    "begin" => Toy { fails_to_begin: true, ..Toy::short() },
                    "prepare" => Toy { fails_to_prepare: true, ..Toy::short() },
                    _ => Toy::new(|_, _| async { Err(RunError::Other("broken".into())) }),
                };
                let jobs = together(&bed, with_log(&log, toys), JobOptions::new).await;
                for job in &jobs {
                    let error = job.ended().await.expect_err("none ends well");
                    let is_it = job.id() == format!("toy{place}");
                    assert_eq!(error.is_cancelled(), !is_it, "{act} at {place}: {} {error}", job.id());
                }
                bed.until(|| bed.registry().query().is_empty()).await;
                let log = log.borrow();
                assert!(!log.iter().any(|told| told == "commit"), "{log:?}");
                let count = |wanted: &str| log.iter().filter(|told| *told == wanted).count();
                assert_eq!(count("abort") + count("take back"), jobs.len(), "{log:?}");
                assert_eq!(count("clean"), jobs.len(), "{log:?}");
                assert_eq!(count("take back"), if act == "prepare" { place } else { 0 }, "{log:?}");
            });
        }
    }
}

#[test]
fn a_group_is_cancelled_and_finalized_as_one() {
    run(|bed| async move {
        // Cancelled while it runs, and while it waits for the others.
        for which in 0..2 {
            let log = Log::default();
            let jobs = together(&bed, with_log(&log, vec![Toy::endless(), Toy::short()]), JobOptions::new).await;
            jobs[1].reached(|status| status == JobStatus::Waiting).await;
            jobs[which].cancel(Cancel::Force).expect("it goes on");
            for job in &jobs {
                assert!(job.ended().await.expect_err("none ends well").is_cancelled());
            }
            bed.until(|| bed.registry().query().is_empty()).await;
            assert!(!acts(&log).contains("prepare"), "{}", acts(&log));
        }
        // To tell one to finalize is to tell all; to cancel one of them as well.
        for is_finalized in [true, false] {
            let log = Log::default();
            let jobs = together(&bed, with_log(&log, vec![Toy::short(), Toy::short()]), JobOptions::manual).await;
            for job in &jobs {
                job.reached(|status| status == JobStatus::Pending).await;
            }
            bed.sleep_ms(5).await;
            assert!(!acts(&log).contains("prepare"), "{}", acts(&log));
            match is_finalized {
                true => jobs[1].finalize().expect("it is pending"),
                false => jobs[1].cancel(Cancel::Force).expect("it is pending"),
            }
            for job in &jobs {
                assert_eq!(job.ended().await.is_ok(), is_finalized);
                bed.registry().dismiss(job.id()).expect("it is over");
            }
            assert_eq!(acts(&log).contains("commit"), is_finalized, "{}", acts(&log));
        }
    });
}

/// Other mutations wait while a group changes the graph, and come after it.
#[test]
fn a_group_has_one_ticket() {
    run(|bed| async move {
        let log = Log::default();
        let held = bed.gs.mutate(|gs| async move { gs.main().sleep(std::time::Duration::from_millis(30)).await });
        let group = JobGroup::new();
        let mut starts = Vec::new();
        for at in 0..3 {
            let toy = Toy { log: log.clone(), ..Toy::short() };
            starts.push(JobRegistry::start_in(&bed.gs, JobOptions::new(format!("toy{at}")), toy, &group));
        }
        held.await;
        let mut jobs = Vec::new();
        for start in starts {
            jobs.push(start.await.expect("it starts"));
        }
        group.complete();
        jobs[0].reached(|status| status == JobStatus::Pending || status.is_over()).await;
        let told = log.clone();
        let other = bed.gs.mutate(move |_| async move { tell(&told, "other") });
        other.await;
        for job in &jobs {
            job.ended().await.expect("a good end");
        }
        let acts = log.borrow();
        let at = |wanted: &str| acts.iter().position(|told| told == wanted);
        let (first, other) = (at("prepare 7").expect("prepared"), at("other").expect("it was its turn"));
        let last = acts.iter().rposition(|told| told == "commit").expect("committed");
        assert!(other < first || other > last, "{acts:?}");
    });
}
