defmodule Barytherium.Directory do
  @moduledoc "A directory for the files of one test, or of a module of tests."

  @doc "Makes it. It is removed when the test, or the module whose `setup_all` calls this, has ended."
  @spec make!() :: Path.t()
  def make! do
    directory = Path.join(System.tmp_dir!(), "barytherium_#{System.unique_integer([:positive])}")
    File.mkdir_p!(directory)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(directory) end)
    directory
  end
end
