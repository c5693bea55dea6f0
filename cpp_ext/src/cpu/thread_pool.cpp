// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "rushes/threads.h"

#if !defined(_WIN32)
#include <unistd.h>
#endif
#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace rushes {
namespace cpu {
namespace {

long process_id() noexcept {
#if defined(_WIN32)
    return 0;  // no fork there
#else
    return static_cast<long>(getpid());
#endif
}

constexpr std::chrono::microseconds kAwake{100};

// Waits awake for what `ready` tells, no longer than a model takes from one call to the next: waking a sleeper takes as
// long as a small call, and more on a virtual machine. Not where there are fewer processors than threads.
template <class Ready>
void wait_awake(int threads, const Ready& ready) {
    static const int processors = static_cast<int>(std::thread::hardware_concurrency());
    if (threads > processors) return;
    const auto end = std::chrono::steady_clock::now() + kAwake;
    for (Pause pause; !ready() && std::chrono::steady_clock::now() < end;) pause();
}

struct Pool {
    std::mutex mutex;
    std::condition_variable wake, done;
    void (*body)(void*, int) = nullptr;
    void* context = nullptr;
    int wanted = 0;  // threads of the current call, the caller included
    int helpers = 0;
    std::atomic<int> running{0};  // helpers that have not ended the current call
    std::atomic<std::uint64_t> call{0};

    void help(int thread, std::uint64_t seen) {
        const auto called = [&] { return call.load(std::memory_order_acquire) != seen; };
        for (int threads = 2;;) {
            wait_awake(threads, called);
            std::unique_lock<std::mutex> lock(mutex);
            wake.wait(lock, called);
            seen = call;
            threads = wanted;
            if (thread >= threads) continue;
            const auto work = body;
            void* const with = context;
            lock.unlock();
            work(with, thread);
            if (running.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
            const std::lock_guard<std::mutex> caller_looks_or_sleeps(mutex);
            done.notify_one();
        }
    }

    // Fewer than asked for when the system has no more; the caller then does more of the work.
    void grow(int count) {
        while (helpers < count) {
            const int thread = helpers + 1;
            const std::uint64_t seen = call;
            try {
                std::thread([this, thread, seen] { help(thread, seen); }).detach();
            } catch (const std::system_error&) {
                return;
            }
            ++helpers;
        }
    }

    void run(int threads, void (*work)(void*, int), void* with) {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            grow(threads - 1);
            if (threads > helpers + 1) threads = helpers + 1;
            body = work;
            context = with;
            wanted = threads;
            running = threads - 1;
            ++call;
        }
        wake.notify_all();
        work(with, 0);
        const auto ended = [&] { return running.load(std::memory_order_acquire) == 0; };
        wait_awake(threads, ended);
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, ended);
    }
};

// Never destroyed: helpers sleep in it when the process ends. A fork copies the pool but no helper, nor an owner of its
// mutexes, so a child makes its own.
struct Owner {
    std::mutex one_caller;
    Pool pool;
    long process = process_id();
};

Owner* owner() {
    static std::mutex guard;
    static Owner* current = nullptr;
    static long made_in = 0;
    if (made_in != process_id() && made_in != 0) {
        // the child has one thread, so nobody else is here; the parent's copy, perhaps locked, is left alone
        current = new Owner;
        made_in = process_id();
        return current;
    }
    const std::lock_guard<std::mutex> lock(guard);
    if (!current) {
        current = new Owner;
        made_in = current->process;
    }
    return current;
}

// Written once, and only then said to be there.
OpenMp shared_threads;
std::atomic<long> shared_in{-1};  // process

struct Region {
    void (*body)(void*, int);
    void* context;
    int threads;
};

// The runtime's whole team comes, as for torch: asked for a smaller one it ends the threads that are over, and the next
// region starts them again.
void run_on_shared(Region& region) noexcept {
    const auto enter = [](void* context) {
        const Region& shared = *static_cast<const Region*>(context);
        const int thread = shared_threads.omp_get_thread_num();
        if (thread < shared.threads) shared.body(shared.context, thread);
    };
    shared_threads.GOMP_parallel(enter, &region, 0, 0);
}

}  // namespace

bool shares_threads(int threads) noexcept {
    const long process = shared_in.load(std::memory_order_acquire);
    return process != -1 && process == process_id() && !shared_threads.omp_in_parallel() &&
           shared_threads.omp_get_max_threads() >= threads;
}

void run_on_threads(int threads, void (*body)(void*, int), void* context) noexcept {
    if (threads > 1) {
        if (shares_threads(threads)) {
            Region region{body, context, threads};
            return run_on_shared(region);
        }
        try {
            Owner* const own = owner();
            const std::unique_lock<std::mutex> alone(own->one_caller, std::try_to_lock);
            if (alone.owns_lock()) return own->pool.run(threads, body, context);
        } catch (const std::exception&) {
            // out of memory for the pool: the caller can still do the work
        }
    }
    body(context, 0);
}

void Pause::operator()() noexcept {
    if (++rounds_ > 4000) {
        std::this_thread::yield();
        return;
    }
#if defined(__SSE2__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("yield");
#endif
}

}  // namespace cpu

void share_threads(const OpenMp& openmp) noexcept {
    static std::atomic<bool> begun{false};
    if (begun.exchange(true)) return;
    cpu::shared_threads = openmp;
    cpu::shared_in.store(cpu::process_id(), std::memory_order_release);
}

}  // namespace rushes
