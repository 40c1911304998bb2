//! Threads that ask sensors at their intervals.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;

use crate::{cell::Cell, sensor::Sensor};

/// How long a thread is waited for when it ends. One that hangs in the operating system is left behind; it touches
/// nothing but its own sensors and ends when the system lets go of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks a thread to end, or to look at once.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<(Mutex<Called>, Condvar)>);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Called {
    #[default]
    No,
    Look,
    End,
}

impl Calls {
    fn call(&self, wanted: Called) {
        let mut called = self.called();
        // The end is not taken back.
        if *called != Called::End {
            *called = wanted;
        }
        self.0.1.notify_all();
    }

    pub(crate) fn ends(&self) -> bool {
        *self.called() == Called::End
    }

    /// Sleeps until `until`, or until the thread is called; says what for.
    fn sleep_until(&self, until: Instant) -> Called {
        let left = until.saturating_duration_since(Instant::now());
        let woken = self.0.1.wait_timeout_while(self.called(), left, |called| *called == Called::No);
        let (mut called, _) = woken.unwrap_or_else(PoisonError::into_inner);
        let wanted = *called;
        if wanted == Called::Look {
            *called = Called::No;
        }
        wanted
    }

    fn called(&self) -> MutexGuard<'_, Called> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread of ours. Dropping it ends it.
pub(crate) struct Lane {
    calls: Calls,
    /// Closed when the thread has ended.
    ended: Mutex<mpsc::Receiver<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Lane {
    pub(crate) fn start(name: &str, work: impl FnOnce(&Calls) + Send + 'static) -> io::Result<Self> {
        let calls = Calls::default();
        let (alive, ended) = mpsc::channel();
        let called = calls.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _alive = alive;
            work(&called);
        })?;
        Ok(Self { calls, ended: Mutex::new(ended), thread: Some(thread) })
    }

    /// Starts a thread that does `tasks`, each at its interval, one after the other.
    pub(crate) fn of_tasks(name: &str, mut tasks: Vec<Task>) -> io::Result<Self> {
        Self::start(name, move |calls| {
            while !calls.ends() {
                let now = Instant::now();
                for task in tasks.iter_mut().filter(|task| task.next <= now) {
                    (task.work)();
                    // Counted from the end: a sensor that is slower than its interval leaves time for the others.
                    task.next = Instant::now() + task.every;
                }
                let Some(next) = tasks.iter().map(|task| task.next).min() else { return };
                if calls.sleep_until(next) == Called::Look {
                    tasks.iter_mut().for_each(|task| task.next = Instant::now());
                }
            }
        })
    }

    pub(crate) fn ask_to_end(&self) {
        self.calls.call(Called::End);
    }

    /// Every task is due now.
    pub(crate) fn look_at_once(&self) {
        self.calls.call(Called::Look);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.ask_to_end();
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
        {
            // A panic in a sensor was printed by its thread; there is nothing left to do about it here.
            let _ = thread.join();
        }
    }
}

/// A sensor to be read at an interval into a cell.
pub(crate) struct Task {
    every: Duration,
    next: Instant,
    work: Box<dyn FnMut() + Send>,
}

impl Task {
    pub(crate) fn new<T: Clone + Send + 'static>(
        every: Duration,
        mut sensor: Box<dyn Sensor<T>>,
        cell: Arc<Cell<T>>,
    ) -> Self {
        let work = Box::new(move || {
            let reading: Reading<T> = sensor.read();
            cell.set(reading, Instant::now());
        });
        Self { every, next: Instant::now(), work }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes its time, and says when it has begun.
    struct Slow {
        takes: Duration,
        begun: mpsc::Sender<()>,
    }

    impl Sensor<u8> for Slow {
        fn read(&mut self) -> Reading<u8> {
            self.begun.send(()).unwrap();
            thread::sleep(self.takes);
            Reading::Known(1)
        }
    }

    /// A lane whose sensor has begun to read.
    fn lane_with_a_sensor_that_takes(takes: Duration) -> (Lane, Arc<Cell<u8>>) {
        let cell = Arc::new(Cell::new(Duration::from_secs(60)));
        let (begun, has_begun) = mpsc::channel();
        let task = Task::new(Duration::from_secs(3600), Box::new(Slow { takes, begun }), cell.clone());
        let lane = Lane::of_tasks("test", vec![task]).unwrap();
        has_begun.recv_timeout(Duration::from_secs(10)).expect("the sensor is read");
        (lane, cell)
    }

    #[test]
    fn a_thread_that_sleeps_for_an_hour_ends_at_once() {
        let (lane, cell) = lane_with_a_sensor_that_takes(Duration::ZERO);
        while !cell.was_read() {
            thread::sleep(Duration::from_millis(1));
        }
        let began = Instant::now();
        drop(lane);
        assert!(began.elapsed() < Duration::from_millis(500), "its sleep is broken off, took {:?}", began.elapsed());
    }

    #[test]
    fn a_sensor_that_hangs_does_not_hold_the_program_back() {
        let (lane, cell) = lane_with_a_sensor_that_takes(Duration::from_secs(30));
        let began = Instant::now();
        drop(lane);
        let took = began.elapsed();
        assert!(!cell.was_read(), "it hangs");
        assert!((PATIENCE..PATIENCE * 3).contains(&took), "it is left behind after {PATIENCE:?}, took {took:?}");
    }
}
