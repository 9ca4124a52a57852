# Checks the library's compiled modules against their specs with Dialyzer. `script/test` calls it:
#
#   elixir script/dialyzer.exs EBIN
#
# Dialyzer knows other modules from a table, a PLT, which is kept in _build. A PLT of OTP and Elixir as
# a whole takes 80 s to make. This one holds only the modules that Dialyzer asks for, which are those
# that the library calls and those whose types it uses.

defmodule Check do
  @moduledoc false

  @versions "otp#{System.otp_release()}-elixir#{System.version()}"
  @plt to_charlist("_build/dialyzer-#{@versions}.plt")

  # `:unmatched_returns` and `:missing_return` are left out. They warn of what is meant, such as an
  # ignored result of closing a socket, and of what a function cannot return.
  @warnings [:unknown, :error_handling, :extra_return]

  def run(ebin) do
    unless File.exists?(@plt), do: plt(:plt_build, [beam(:erlang)])
    ebin |> Path.join("*.beam") |> Path.wildcard() |> Enum.filter(&library?/1) |> analyse([])
  end

  # The tests' own modules are in the same directory.
  defp library?(beam) do
    {:ok, {_module, [compile_info: info]}} = :beam_lib.chunks(to_charlist(beam), [:compile_info])
    not String.contains?(to_string(info[:source]), "/test/support/")
  end

  defp analyse([_ | _] = files, known) do
    options = [analysis_type: :succ_typings, init_plt: @plt, warnings: @warnings]
    warnings = :dialyzer.run([files: Enum.map(files, &to_charlist/1)] ++ options)

    asked =
      for {_tag, _place, warning} <- warnings, module = asked(warning), uniq: true, do: module

    case for module <- asked -- known, beam = beam(module), do: beam do
      [] ->
        warnings

      beams ->
        plt(:plt_add, beams)
        analyse(files, asked ++ known)
    end
  end

  defp asked({:unknown_function, {module, _function, _arity}}), do: module
  defp asked({:unknown_type, {module, _type, _arity}}), do: module
  defp asked({:unknown_behaviour, module}), do: module
  defp asked({:callback_info_missing, [module]}), do: module
  defp asked(_warning), do: nil

  defp plt(type, beams) do
    plts = if type == :plt_build, do: [], else: [init_plt: @plt]
    :dialyzer.run([analysis_type: type, files: beams, output_plt: @plt] ++ plts)
  end

  defp beam(module) do
    case :code.which(module) do
      path when is_list(path) and path != [] -> path
      :preloaded -> :filename.join(:code.lib_dir(:erts), ~c"ebin/#{module}.beam")
      _none -> nil
    end
  end
end

[ebin] = System.argv()
warnings = Check.run(ebin)

for warning <- warnings,
    do: warning |> :dialyzer.format_warning(filename_opt: :fullpath) |> IO.puts()

if warnings != [], do: System.halt(1)
