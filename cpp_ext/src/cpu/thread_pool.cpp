// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "thread_pool.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace rushes::cpu {
namespace {

long process_id() noexcept {
#if defined(_WIN32)
    return 0;  // no fork there
#else
    return static_cast<long>(getpid());
#endif
}

struct Pool {
    std::mutex mutex;
    std::condition_variable wake, done;
    void (*body)(void*, int, int) = nullptr;
    void* context = nullptr;
    int wanted = 0;   // threads of the current call, the caller included
    int running = 0;  // helpers that have not ended it
    std::uint64_t call = 0;
    int helpers = 0;

    void help(int thread, std::uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return call != seen; });
            seen = call;
            if (thread >= wanted) continue;
            const auto work = body;
            void* const with = context;
            const int threads = wanted;
            lock.unlock();
            work(with, thread, threads);
            lock.lock();
            if (--running == 0) done.notify_one();
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

    int run(int threads, void (*work)(void*, int, int), void* with) {
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
        work(with, 0, threads);
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [&] { return running == 0; });
        return threads;
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

}  // namespace

int run_on_threads(int threads, void (*body)(void*, int, int), void* context) noexcept {
    if (threads > 1) {
        try {
            Owner* const shared = owner();
            const std::unique_lock<std::mutex> alone(shared->one_caller, std::try_to_lock);
            if (alone.owns_lock()) return shared->pool.run(threads, body, context);
        } catch (const std::exception&) {
            // out of memory for the pool: the caller can still do the work
        }
    }
    body(context, 0, 1);
    return 1;
}

}  // namespace rushes::cpu
