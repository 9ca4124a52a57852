[
  inputs: [
    "{mix,.formatter}.exs",
    "{lib,test,bench,demo,script}/**/*.{ex,exs}",
    "examples/*.exs",
    "examples/*/*.exs",
    "examples/*/{config,lib}/**/*.{ex,exs}",
    "integrations/*/mix.exs",
    "integrations/*/{lib,test}/**/*.{ex,exs}"
  ]
]
