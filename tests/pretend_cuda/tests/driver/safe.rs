//! cudarc's safe face, as applications use it.

use cudarc::driver::CudaContext;

use crate::steer::count;
use crate::{ONE, on};

#[test]
fn cudarc_works_on_it() {
    on(ONE, || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.name().unwrap(), "GPU");
        assert_eq!(context.compute_capability().unwrap(), (8, 6));
        assert_eq!(context.mem_get_info().unwrap(), (1 << 30, 1 << 30));
        let streams =
            [context.default_stream(), context.new_stream().unwrap(), context.per_thread_stream()];
        for stream in streams {
            let bytes: Vec<u32> = (0..1000).collect();
            let mut slice = stream.alloc_zeros::<u32>(1000).unwrap();
            stream.memcpy_htod(&bytes, &mut slice).unwrap();
            let copy = stream.clone_dtod(&slice).unwrap();
            assert_eq!(stream.clone_dtoh(&copy).unwrap(), bytes);
        }
        context.synchronize().unwrap();
        context.check_err().unwrap();
        assert_eq!(count("allocations", 0), 0);
        drop(context);
        assert_eq!(count("contexts_created", 0), 1);
        assert_eq!(count("streams", 0), 0);
    });
}
