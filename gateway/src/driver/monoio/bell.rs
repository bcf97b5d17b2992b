//! The doorbell for monoio: the eventfd of [`millrace_uring::Bell`], watched by a task.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    rc::Rc,
};

use ::monoio::net::UnixStream as Watched;

use crate::driver::runtime;

pub struct Bell(millrace_uring::Bell);

impl runtime::Bell for Bell {
    type Waker = millrace_uring::Waker;

    fn new() -> io::Result<Self> {
        let bell = millrace_uring::Bell::new()?;
        // The task reads it when it is readable; should it not be, it must not wait there.
        rustix::io::ioctl_fionbio(&bell, true)?;
        Ok(Self(bell))
    }

    fn waker(&self) -> Self::Waker {
        self.0.waker()
    }

    fn fall_asleep(&self) -> bool {
        self.0.fall_asleep()
    }

    fn look(&self) -> bool {
        self.0.look()
    }

    fn watch(&self, rung: Rc<dyn Fn()>) -> io::Result<impl Future<Output = ()> + 'static> {
        let eventfd = self.0.as_fd().try_clone_to_owned()?;
        // No socket, but monoio has no other type that only waits for a descriptor to become
        // readable; nothing else is done with it.
        let watched = Watched::from_std(UnixStream::from(self.0.as_fd().try_clone_to_owned()?))?;
        Ok(async move {
            while watched.readable(false).await.is_ok() {
                let mut count = [0; 8];
                // Fails only when somebody else has read it, which is as good.
                let _read = rustix::io::read(&eventfd, &mut count);
                rung();
            }
        })
    }
}
