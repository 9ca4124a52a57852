[
  inputs: [
    "{mix,.formatter}.exs",
    "{lib,test,bench,script}/**/*.{ex,exs}",
    "integrations/*/mix.exs",
    "integrations/*/{lib,test}/**/*.{ex,exs}"
  ]
]
