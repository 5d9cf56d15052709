// Sums of rows with the same destination: the gradient of indexing with repeated indices.

#define READ_AHEAD 8  // elements that a thread reads before it adds them, so that it waits for memory once

// Adds to each row of out the rows of values that belong there. order sorts the rows of values by their destination
// (null: they are sorted), and targets are the destinations in that order; equal ones are a run. Each thread goes
// through `length` of them in one column, however long the runs are, and adds the sums of its runs to out. Its first
// and its last run may go on in its neighbours: their sums are rows 2 s and 2 s + 1 of sums, for part s, with their
// destinations in ends. These are sorted, too, for the next launch. In the last launch there is one part, and sums
// and ends are null.
template <typename T>
__global__ void scatter_rows(
    const T* values, const index_t* order, const index_t* targets, T* out, T* sums, index_t* ends, index_t n,
    index_t columns, index_t length) {
    FOR_EACH_ELEMENT(k, (n + length - 1) / length * columns) {
        index_t part = k / columns, column = k % columns;
        index_t start = part * length, stop = start + length < n ? start + length : n;
        index_t target = targets[start];
        T* first = sums == nullptr ? nullptr : sums + 2 * part * columns + column;
        T* last = first == nullptr ? nullptr : first + columns;
        bool is_first = true;
        Sum<T> total;
        for (index_t i = start; i < stop; i += READ_AHEAD) {
            index_t where[READ_AHEAD];
            T x[READ_AHEAD];
            for (int j = 0; j < READ_AHEAD; j++) {
                index_t at = i + j < stop ? i + j : stop - 1;
                where[j] = targets[at];
                x[j] = values[(order == nullptr ? at : order[at]) * columns + column];
            }
            for (int j = 0; j < READ_AHEAD; j++) {
                if (i + j >= stop) continue;
                if (where[j] != target) {
                    if (is_first && first != nullptr)
                        *first = total.value();
                    else
                        out[target * columns + column] += total.value();
                    is_first = false;
                    target = where[j];
                    total = Sum<T>();
                }
                total.add(x[j]);
            }
        }
        if (first == nullptr) {
            out[target * columns + column] += total.value();
        } else {
            if (is_first) *first = total.value();
            *last = is_first ? T(0) : total.value();
            if (column == 0) {
                ends[2 * part] = targets[start];
                ends[2 * part + 1] = target;
            }
        }
    }
}
