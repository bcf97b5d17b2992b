//! How long each hot path takes: `cargo bench -p millrace-hot-paths`.

use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn hot_paths(criterion: &mut Criterion) {
    for (name, prepare) in millrace_hot_paths::ALL {
        let mut path = prepare();
        let mut group = criterion.benchmark_group(*name);
        group.throughput(Throughput::Elements(path.items));
        group.bench_function(path.what, |bencher| {
            bencher.iter_custom(|times| {
                let begin = Instant::now();
                path.run(times);
                begin.elapsed()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, hot_paths);
criterion_main!(benches);
