defmodule Barytherium.WithoutCargo do
  @moduledoc """
  An environment like that of a user who has Erlang and Elixir and no Rust.
  """

  @doc "The environment variables for it. It needs a directory of its own."
  def environment(directory) do
    path = Path.join(directory, "bin")
    File.mkdir_p!(path)
    # Link all tools of this system but cargo.
    for tool <- ["elixir", "mix", "erl" | File.ls!("/usr/bin")], tool != "cargo" do
      tool |> System.find_executable() |> link(path, tool)
    end

    [{"PATH", path}, {"HOME", directory}]
  end

  defp link(nil, _path, _tool), do: :ok
  # `File.ln_s/2` fails for tools that are linked already.
  defp link(found, path, tool), do: File.ln_s(found, Path.join(path, tool))
end
