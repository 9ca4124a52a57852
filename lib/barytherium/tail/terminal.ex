defmodule Barytherium.Tail.Terminal do
  @moduledoc false
  # What the terminal is and does. The VM knows little about it in a way that is the same in all releases
  # of OTP, so `test` and `stty` are asked. They run in a port that has the VM's own stdin, stdout and
  # stderr, and talks to the VM through descriptors 3 and 4.

  alias Barytherium.Native

  defstruct live: false, colors: false

  @typedoc "`live`: it is a terminal, and can erase a line."
  @type t :: %__MODULE__{live: boolean(), colors: boolean()}

  # Takes a terminal as stdin: the output or the input may be a pipe.
  @take_terminal """
  for fd in 0 1 2; do
    if test -t $fd; then eval "exec <&$fd"; break; fi
  done
  test -t 0 || exit 1
  """

  # Ctrl-C would open the VM's break menu, and SIGINT cannot be handled. SIGQUIT can, so Ctrl-C is made to
  # send that one.
  @divert "intr undef quit '^C'"

  @doc "The terminal that this descriptor of the VM is: 1 is stdout, 2 stderr."
  @spec detect(1 | 2) :: t()
  def detect(descriptor), do: new(terminal?(descriptor), System.get_env())

  @doc "See https://no-color.org."
  @spec new(boolean(), %{String.t() => String.t()}) :: t()
  def new(terminal?, env) do
    live = terminal? and env["TERM"] not in [nil, "", "dumb"]
    %__MODULE__{live: live, colors: live and env["NO_COLOR"] in [nil, ""]}
  end

  @doc "Whether nobody reads stdout any more. Without a question, only a write would tell."
  @spec abandoned?() :: boolean()
  def abandoned?, do: Native.is_abandoned(1)

  @doc "Asks for a password, without showing what is typed. Returns `nil` without a terminal."
  @spec password(String.t()) :: nil | String.t()
  def password(prompt) do
    shell = terminal?(0) && start(@divert <> " -echo")

    if shell do
      try do
        IO.write(:stderr, prompt)
        typed(IO.gets(""))
      after
        stop(shell)
        # The line end was not shown either.
        IO.write(:stderr, "\n")
      end
    end
  end

  defp typed(line) when is_binary(line), do: String.trim_trailing(line, "\n")
  defp typed(_end_of_input), do: nil

  @doc "Makes Ctrl-C send SIGQUIT. `release/1` undoes it. Without a terminal it does nothing."
  @spec divert_ctrl_c() :: nil | port()
  def divert_ctrl_c, do: start(@divert)

  @spec release(nil | port()) :: :ok
  def release(nil), do: :ok
  def release(shell), do: stop(shell)

  defp terminal?(fd) do
    port = open("test -t #{fd}")

    receive do
      {^port, {:exit_status, status}} -> status == 0
    end
  end

  # The shell ends with the VM, whatever ends the VM, and then restores the terminal.
  defp start(settings) do
    port =
      open("""
      #{@take_terminal}
      saved=$(stty -g) || exit 1
      stty #{settings} && echo ready >&4
      read line <&3
      stty "$saved"
      """)

    receive do
      {^port, {:data, "ready\n"}} -> port
      {^port, {:exit_status, _status}} -> nil
    end
  end

  # The shell belongs to the process that started it, and its end is awaited there.
  defp stop(port) do
    Port.command(port, "\n")

    receive do
      {^port, {:exit_status, _status}} -> :ok
    end
  end

  defp open(script) do
    options = [:nouse_stdio, :binary, :exit_status, args: ["-c", script]]
    Port.open({:spawn_executable, "/bin/sh"}, options)
  end
end
