// Runs every check of the kernels on the emulated GPU; exits with 1 when one fails.
#include "check.h"

int main() {
    check::Report report;
    check::ffn(report);
    printf("%d failed\n", report.failures);
    return report.failures ? 1 : 0;
}
