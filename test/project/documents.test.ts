import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join, relative } from 'node:path'
import test from 'ava'
import { type Actions, hushringProgram } from '../../src/cli/program.ts'
import { run } from '../helpers/processes.ts'

const root = join(import.meta.dirname, '../..')
const LIMIT_SECONDS = 60

// ---- Snippets ----------------------------------------------------------------------------------------------------
//
// A `ts` block is a module on its own: it must fit the types. It is also run when it is in the README, unless `root`
// follows the language, or when `run` does. Fragments that are no modules have no language.

interface Snippet {
  /** Such as `README.md:12`. */
  readonly place: string
  readonly language: string
  readonly runs: boolean
  readonly text: string
}

function snippetsOf(path: string, markdown: string): Snippet[] {
  const snippets: Snippet[] = []
  for (const match of markdown.matchAll(/^```(\w+)(?: (run|root))?\n(.*?)^```$/gms)) {
    const [, language = '', mark, text = ''] = match
    const line = markdown.slice(0, match.index).split('\n').length
    snippets.push({
      place: `${path}:${line}`,
      language,
      runs: mark === 'run' || (mark !== 'root' && path === 'README.md'),
      text,
    })
  }
  return snippets
}

const documents = [
  ...readdirSync(root),
  ...readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' }).map((path) => join('docs', path)),
].filter((path) => path.endsWith('.md'))
const snippets = documents.flatMap((path) => snippetsOf(path, readFileSync(join(root, path), 'utf8')))
const modules = snippets.filter(({ language }) => language === 'ts')

/** Makes a folder inside the package, so that `hushring` is found in it as its users find it. */
async function withFolder<Result>(use: (folder: string) => Promise<Result>): Promise<Result> {
  mkdirSync(join(root, '.cache'), { recursive: true })
  const folder = await mkdtemp(join(root, '.cache/documents-'))
  try {
    return await use(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** What tsc has to say about snippets, line by line. */
function typeErrors(snippets: readonly Snippet[]): Promise<string> {
  return withFolder(async (folder) => {
    for (const { place, text } of snippets) {
      // Two snippets may use the same names.
      await writeFile(join(folder, `${place.replace(/\W/g, '_')}.ts`), `${text}export {}\n`)
    }
    const config = { extends: '../../tsconfig.json', include: ['*.ts'] }
    await writeFile(join(folder, 'tsconfig.json'), JSON.stringify(config))
    const tsc = [join(root, 'node_modules/.bin/tsc'), '-p', folder]
    return run(tsc, LIMIT_SECONDS).then(String, (error: { stdout: Buffer }) => String(error.stdout))
  })
}

/** Runs a module of TypeScript to its end. @returns what it printed; rejects unless its exit status is 0 */
function runModule(path: string, folder: string): Promise<Buffer> {
  return run(['env', '--chdir', folder, process.execPath, '--import=tsx', path], LIMIT_SECONDS)
}

function runSnippet({ text }: Snippet): Promise<Buffer> {
  return withFolder(async (folder) => {
    await writeFile(join(folder, 'snippet.ts'), text)
    return runModule('snippet.ts', folder)
  })
}

const snippet = (text: string): Snippet => ({ place: 'control', language: 'ts', runs: true, text })

test('the types fit in every snippet of the documents, and a wrong snippet among them is noticed', async (t) => {
  t.true(modules.length > 0)
  const wrong = snippet("import { nullDisk } from 'hushring'\nnullDisk({ capacityBites: 512 })\n")
  const errors = (await typeErrors([...modules, wrong])).trimEnd().split('\n')
  t.is(errors.length, 1, errors.join('\n'))
  t.regex(errors[0]!, /control\.ts.*capacityBites/)
})

for (const runnable of modules.filter(({ runs }) => runs)) {
  test.serial(`the snippet at ${runnable.place} runs`, async (t) => {
    await t.notThrowsAsync(runSnippet(runnable))
  })
}

test('a snippet that throws is noticed', async (t) => {
  await t.throwsAsync(runSnippet(snippet("import 'hushring'\nthrow new Error('on purpose')\n")), {
    message: /on purpose/,
  })
})

test('blocks are found with their place, language and whether they run', (t) => {
  const markdown = 'Text\n\n```ts\na\n```\n\n```sh run\nb\n```\n\n```\nfragment\n```\n'
  t.deepEqual(snippetsOf('docs/a.md', markdown), [
    { place: 'docs/a.md:3', language: 'ts', runs: false, text: 'a\n' },
    { place: 'docs/a.md:7', language: 'sh', runs: true, text: 'b\n' },
  ])
  t.true(snippetsOf('README.md', markdown)[0]!.runs)
  const [needsRoot] = snippetsOf('README.md', '```ts root\na\n```\n')
  t.deepEqual(needsRoot, { place: 'README.md:1', language: 'ts', runs: false, text: 'a\n' })
})

// ---- Examples ----------------------------------------------------------------------------------------------------

const examples = readdirSync(join(root, 'examples')).filter((name) => name.endsWith('.ts'))
for (const name of examples) {
  test.serial(`the example ${name} runs and says something`, async (t) => {
    const output = await withFolder((folder) =>
      runModule(relative(folder, join(root, 'examples', name)), folder),
    )
    t.true(output.length > 0)
  })
}

// ---- Command lines -----------------------------------------------------------------------------------------------

/** The command lines of hushring in a text, such as a block of a document or a help text. */
function commandLinesOf(text: string): string[] {
  return text
    .replaceAll('\\\n', '')
    .split('\n')
    .flatMap((line) => /^\s*(?:\$ )?(?:npx )?(hushring .*?)( [&>|#].*)?$/.exec(line)?.[1] ?? [])
}

/** Parses a command line without doing what it says. @throws for wrong usage */
async function parse(commandLine: string): Promise<string[]> {
  const called: string[] = []
  const note = (name: string) => async () => called.push(name)
  const actions: Actions = {
    demo: note('demo'),
    litmus: note('litmus'),
    bench: note('bench'),
    serveVhostUser: note('serve vhost-user'),
    serveTcmu: note('serve tcmu'),
  }
  const words = commandLine.match(/(?:'[^']*'|"[^"]*"|[^\s'"])+/g)!.map((word) => word.replace(/['"]/g, ''))
  const program = hushringProgram(actions, () => {}, { writeErr() {} })
  await program.parseAsync(words.slice(1), { from: 'user' })
  return called
}

test('every command line of the documents and of the help is right', async (t) => {
  const blocks = snippets.filter(({ language }) => ['sh', 'bash', 'console'].includes(language))
  const commandLines = [
    ...blocks.map(({ text }) => text),
    await help('demo'),
    await help('litmus'),
    await help('bench'),
    await help('serve', 'vhost-user'),
    await help('serve', 'tcmu'),
  ]
    .flatMap(commandLinesOf)
    .filter((line) => !line.includes('['))
  t.true(commandLines.length > 4)
  for (const line of commandLines) t.is((await parse(line)).length, 1, line)
})

async function help(...command: string[]): Promise<string> {
  let text = ''
  const writeOut = (part: string): void => {
    text += part
  }
  const program = hushringProgram(
    {
      demo: async () => 0,
      litmus: async () => 0,
      bench: async () => 0,
      serveVhostUser: async () => 0,
      serveTcmu: async () => 0,
    },
    () => {},
    {
      writeOut,
    },
  )
  await program.parseAsync([...command, '--help'], { from: 'user' }).catch(() => {})
  return text
}

test('the check of command lines notices an option that does not exist', async (t) => {
  await t.throwsAsync(parse('hushring serve vhost-user --sockit ./d.sock --memory 1MiB'), {
    message: /--sockit/,
  })
  t.deepEqual(commandLinesOf('$ npx hushring demo --json > out.json\nhushring serve \\\n  vhost-user\n'), [
    'hushring demo --json',
    'hushring serve   vhost-user',
  ])
})
