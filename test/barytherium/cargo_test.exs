defmodule Barytherium.CargoTest do
  # It changes the environment, so nothing else may run meanwhile.
  use ExUnit.Case, async: false

  alias Barytherium.Build.{Cargo, Target}

  @moduletag :tmp_dir

  # A cargo that rustup has to install first, and that notes how it is called.
  setup %{tmp_dir: directory} do
    File.write!(Path.join(directory, "cargo"), """
    #!/bin/sh
    if [ "$1" = --version ]; then
      echo "info: syncing channel updates for 'stable'" >&2
      echo "info: latest update on 2026-01-01"
      echo "cargo 1.95.0 (abc 2026-01-01)"
      exit
    fi
    echo "$@" > #{directory}/arguments
    env > #{directory}/environment
    [ -e #{directory}/fails ] && exit 101
    echo '{"filenames":["/built/libbarytherium_nif.so"]}'
    """)

    File.chmod!(Path.join(directory, "cargo"), 0o755)
    variables = for name <- ["PATH", "CC"], do: {name, System.get_env(name)}
    System.put_env("PATH", directory <> ":" <> System.get_env("PATH"))

    on_exit(fn ->
      for {name, value} <- variables,
          do: if(value, do: System.put_env(name, value), else: System.delete_env(name))
    end)
  end

  defp noted(directory, name), do: File.read!(Path.join(directory, name))

  test "what rustup says around the version does not matter", %{tmp_dir: directory} do
    assert Cargo.build("/target") == {:ok, "/built/libbarytherium_nif.so"}
    refute noted(directory, "arguments") =~ "--target "
  end

  @device "aarch64-unknown-linux-gnu"

  test "a build for another system is for its target, and links with its compiler", context do
    compiler = Path.join(context.tmp_dir, "aarch64-gcc")
    File.write!(compiler, "")
    File.chmod!(compiler, 0o755)
    System.put_env("CC", compiler)
    assert {:ok, _library} = Cargo.build("/target", @device)
    assert noted(context.tmp_dir, "arguments") =~ "--target #{@device}"

    assert noted(context.tmp_dir, "environment") =~
             "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=#{compiler}\n"

    System.put_env("CC", "gcc -m32")
    assert {:ok, _library} = Cargo.build("/target", @device)
    refute noted(context.tmp_dir, "environment") =~ "LINKER"
  end

  test "a build for another system that fails says what it needs", %{tmp_dir: directory} do
    File.write!(Path.join(directory, "fails"), "")
    assert {:error, text} = Cargo.build("/target", @device)
    assert text =~ "rustup target add #{@device}"
    assert {:error, text} = Cargo.build("/target")
    refute text =~ "rustup"
  end

  test "Nerves asks for another target, and nobody else does" do
    here = "x86_64-pc-linux-gnu"
    assert Target.cross(here, %{"TARGET_ARCH" => "aarch64"}) == @device
    assert Target.cross(here, %{"TARGET_ABI" => "musl"}) == "x86_64-unknown-linux-musl"
    assert Target.cross(here, %{"TARGET_ARCH" => "x86_64", "TARGET_OS" => "linux"}) == nil
    assert Target.cross(here, %{}) == nil
  end
end
