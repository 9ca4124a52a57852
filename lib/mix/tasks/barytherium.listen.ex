defmodule Mix.Tasks.Barytherium.Listen do
  @shortdoc "Another name of mix barytherium.tail"
  @moduledoc "The former name of `mix barytherium.tail`, with the same options."
  use Mix.Task

  @impl true
  def run(argv), do: Mix.Tasks.Barytherium.Tail.run(argv)
end
