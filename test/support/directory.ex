defmodule Barytherium.Directory do
  @moduledoc "A directory for the files of one test, or of a module of tests."

  @doc "Makes it. It is removed when the test, or the module whose `setup_all` calls this, has ended."
  @spec make!() :: Path.t()
  def make! do
    directory = path()
    File.mkdir_p!(directory)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(directory) end)
    directory
  end

  @doc "A path for a temporary file, which no other VM uses."
  @spec path() :: Path.t()
  def path do
    name = "barytherium_#{System.pid()}_#{System.unique_integer([:positive])}"
    Path.join(System.tmp_dir!(), name)
  end
end
