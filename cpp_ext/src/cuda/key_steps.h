// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Which keys each step of the main loop takes, dense and by lists alike, for host and device.
//
// A source gives ranges of tokens in rising order: one for dense attention, one for each listed tile otherwise. Ranges
// that touch are one run (a window of tiles along a row is one run), and runs are cut into parts of at most kPartKeys.
// A step takes kParts parts, side by side; part p is columns p * kPartKeys ... of the scores. With 64-token tiles, two
// of them fill the 128 keys that the matrix unit wants. A part may hold fewer keys: at the end of a run, of the list,
// of the sequence. Only such steps are masked.
#pragma once

#include "layout.h"

namespace rushes::cuda {

struct TokenRange {
    std::int32_t begin, end;
};

template <int kParts>
struct KeyStep {
    std::int32_t begin[kParts];  // first token of each part
    std::int32_t count[kParts];  // 0: nothing in this part (then begin is 0); the first part is never empty
};

// The place in an item's keys. Source: std::int32_t count() and TokenRange range(std::int32_t i), which is called with
// rising i, once each. It is handed in for each step, so that the place alone can be kept in shared memory.
template <int kParts, int kPartKeys>
class KeySteps {
public:
    // False at the end; `step` then has no keys.
    template <class Source>
    RUSHES_HD bool next(Source& source, KeyStep<kParts>& step) {
        for (int part = 0; part < kParts; ++part) {
            step.begin[part] = 0;
            step.count[part] = 0;
            if (!fill(source)) continue;
            const std::int32_t left = end_ - at_;
            step.begin[part] = at_;
            step.count[part] = left < kPartKeys ? left : kPartKeys;
            at_ += step.count[part];
        }
        return step.count[0] > 0;
    }

private:
    // Makes the run long enough for a whole part, if ranges that touch allow it. Looks no further ahead than that: a
    // row that lists thousands of tiles would otherwise read all of them before its first product. False: no keys are
    // left.
    template <class Source>
    RUSHES_HD bool fill(Source& source) {
        if (at_ == end_) {
            if (!peek(source)) return false;
            at_ = ahead_.begin;
            end_ = ahead_.end;
            held_ = 0;
        }
        while (end_ - at_ < kPartKeys && peek(source) && ahead_.begin == end_) {
            end_ = ahead_.end;
            held_ = 0;
        }
        return true;
    }
    template <class Source>
    RUSHES_HD bool peek(Source& source) {
        if (!held_ && index_ < source.count()) {
            ahead_ = source.range(index_++);
            held_ = 1;
        }
        return held_ != 0;
    }

    std::int32_t index_ = 0, at_ = 0, end_ = 0, held_ = 0;  // held: ahead_ has been read and not yet used
    TokenRange ahead_{0, 0};
};

}  // namespace rushes::cuda
