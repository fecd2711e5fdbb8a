// Writes docs/errors.md from src/errors.ts: `npm run docs:errors`. A test fails when the two differ.
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ERROR_CODES, type ErrorDescription, type ErrorFamily } from '../src/errors.ts'

const FAMILIES: Readonly<Record<ErrorFamily, string>> = {
  caller: `## The caller is wrong

The program that uses hushring passed something that cannot work. Thrown at once; wrong options are \`TypeError\` or
\`RangeError\` with one of these codes, everything else is a \`HushringError\`.`,
  peer: `## The peer is wrong

The driver or the front-end broke the protocol. A malformed request is returned with length 0 and counted (with
\`strictChains\` it breaks its queue), a malformed ring breaks its queue and tells it with the \`degraded\` event, a
malformed message ends its connection. The process and everything else in it runs on.`,
  medium: `## The medium failed

The store, the handler or the operating system failed. The request that met it fails with the status its device has
for that; the underlying error is the \`cause\`.`,
}

/**
 * The text of docs/errors.md.
 *
 * @param codes every code with its description
 */
export function errorDocs(codes: Readonly<Record<string, ErrorDescription>>): string {
  const sections = Object.entries(FAMILIES).map(([family, introduction]) => {
    const rows = Object.entries(codes)
      .filter(([, description]) => description.family === family)
      .map(([code, { meaning, remedy }]) => `| \`${code}\` | ${meaning} | ${remedy} |`)
    return [introduction, '', '| code | what happened | what to do |', '| --- | --- | --- |', ...rows].join(
      '\n',
    )
  })
  return `# Errors

Every error has a stable \`code\`. Match on the code and not with \`instanceof\`: two copies of hushring may be loaded.
The \`family\` says who is at fault; the command line exits with 2 for wrong options and with 1 for everything else.

${sections.join('\n\n')}
`
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(new URL('../docs/errors.md', import.meta.url), errorDocs(ERROR_CODES))
}
