// The numbers of a captured step. Words are 64-bit integers; floating-point numbers are copied as their bits.

// One block. Copies the next row of the table to `row`, and counts it.
// table: how many rows were copied, the width of a row, and then the rows.
__global__ void next_row(index_t* table, index_t* row) {
    index_t next = table[0], width = table[1];
    FOR_EACH_COLUMN(i, width) row[i] = table[2 + next * width + i];
    __syncthreads();
    if (threadIdx.x == 0) table[0] = next + 1;
}
