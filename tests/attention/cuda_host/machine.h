// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// One thread block on the host: each thread a fiber with its own stack, switched in random order, so that a missing
// barrier shows. What the machine does behind the threads (copies, products) is queued and carried out as early or as
// late as it may be, by the mode: a missing wait shows when late, a slot overwritten too soon when early.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

namespace emulation {

// A rule of the machine was broken: ends the run, on whichever stack it is noticed.
[[noreturn]] void fail(const char* what);

enum class Mode { kEarly, kLate, kRandom };

// Threads that wait for each other. The last one to come does the work of all.
struct Meeting {
    int arrived = 0;
    std::vector<int> waiting;
    std::vector<void*> given = std::vector<void*>(1024, nullptr);  // one thing of each thread, by its place
};

struct MBarrier {
    int expected = 0, pending = 0, phase = 0;
    long long bytes = 0;  // announced and not yet come
    std::vector<int> waiting;
};

class Machine {
public:
    Machine(int threads, std::size_t shared_bytes, Mode mode, unsigned seed)
        : mode(mode), shared(shared_bytes), random_(seed), fibers_(threads), warps(threads / 32),
          groups(threads / 128 + 1) {}

    // Runs `body` as every thread of block `number`.
    void run(std::int64_t number, const std::function<void()>& body) {
        block = number;
        body_ = &body;
        now = this;
        ready_.clear();
        named.clear();  // a turn may have been given to nobody at the end
        mbarriers.clear();
        for (auto& group : groups) group = {};
        for (auto& byte : shared) byte = 0xff;  // NaN, should anything be read that was not written
        for (int i = 0; i < static_cast<int>(fibers_.size()); ++i) {
            Fiber& fiber = fibers_[i];
            if (!fiber.stack) fiber.stack.reset(new char[kStack]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = &scheduler_;
            makecontext(&fiber.context, &Machine::enter, 0);
            ready_.push_back(i);
        }
        finished_ = 0;
        schedule();
        if (!behind.empty()) fail("the block ended before its copies");
    }

    int thread() const { return thread_; }

    // Until something wakes this thread.
    void block_on(std::vector<int>& waiting) {
        waiting.push_back(thread_);
        swapcontext(&fibers_[thread_].context, &scheduler_);
    }
    // Lets others go first, perhaps: what this thread does next, a card may do much later.
    void dawdle() {
        if (mode == Mode::kEarly) return;
        ready_.push_back(thread_);
        swapcontext(&fibers_[thread_].context, &scheduler_);
    }
    void wake(std::vector<int>& waiting) {
        for (const int i : waiting) ready_.push_back(i);
        waiting.clear();
    }
    // All of `count` threads come together; the last does `work`.
    template <class Work>
    void meet(Meeting& meeting, int count, int place, void* thing, Work work) {
        meeting.given[place] = thing;
        if (++meeting.arrived < count) return block_on(meeting.waiting);
        meeting.arrived = 0;
        work(meeting.given.data());
        wake(meeting.waiting);
    }

    [[noreturn]] void stop(const char* what) {
        if (!in_fiber_) throw std::runtime_error(what);
        broken_ = what;  // no exception crosses to another stack: the scheduler throws it
        setcontext(&scheduler_);
        std::abort();
    }

    bool acts_now() { return mode == Mode::kEarly || (mode == Mode::kRandom && random_() % 2); }

    static Machine* now;  // the one whose thread runs
    Mode mode;
    std::int64_t block = 0;
    std::vector<unsigned char> shared;
    std::deque<std::function<void()>> behind;  // tensor copies that have been asked for
    Meeting all;
    std::map<int, Meeting> named;
    std::map<std::uint32_t, MBarrier> mbarriers;

private:
    static constexpr std::size_t kStack = 256 * 1024;
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
    };

    static void enter() {
        Machine& self = *now;
        (*self.body_)();
        ++self.finished_;
    }

    void schedule() {
        for (;;) {
            // something behind the threads happens now and then, in any order; at the latest when all wait for it
            if (!behind.empty() && (ready_.empty() || (mode != Mode::kLate && random_() % 4 == 0))) {
                const std::size_t i = random_() % behind.size();
                const auto act = behind[i];
                behind.erase(behind.begin() + static_cast<long>(i));
                act();
                continue;
            }
            if (ready_.empty()) {
                if (finished_ == static_cast<int>(fibers_.size())) return;
                fail("all threads wait for each other");
            }
            const std::size_t i = random_() % ready_.size();
            thread_ = ready_[i];
            ready_[i] = ready_.back();
            ready_.pop_back();
            in_fiber_ = true;
            swapcontext(&scheduler_, &fibers_[thread_].context);
            in_fiber_ = false;
            if (broken_) throw std::runtime_error(broken_);
        }
    }

    std::mt19937 random_;
    std::vector<Fiber> fibers_;
    std::vector<int> ready_;
    ucontext_t scheduler_{};
    const std::function<void()>* body_ = nullptr;
    int thread_ = 0, finished_ = 0;
    volatile bool in_fiber_ = false;
    const char* volatile broken_ = nullptr;

public:
    struct Warp {
        Meeting meeting;
    };
    // Products of a warp group: asked for, closed into groups of products, carried out in order, by each of the four
    // warps for its own rows.
    using Products = std::vector<std::function<void(int warp)>>;
    struct WarpGroup {
        Meeting meeting;
        Products open;
        std::vector<Products> closed;
        std::size_t done[4] = {};  // groups that each warp has carried out
    };
    std::vector<Warp> warps;
    std::vector<WarpGroup> groups;
};

inline Machine* Machine::now = nullptr;

inline void fail(const char* what) { Machine::now->stop(what); }

}  // namespace emulation
