[
  inputs: [
    "{mix,.formatter}.exs",
    "{lib,test,bench}/**/*.{ex,exs}",
    "integrations/*/mix.exs",
    "integrations/*/{lib,test}/**/*.{ex,exs}"
  ]
]
